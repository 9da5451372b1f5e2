"""Does something at the moment when a queue's request is under way and not yet answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker_pipeline.storage.pull_subscription import PullSubscription


def after_asking(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have `act` called after each request of any queue."""
    ask = PullSubscription._ask

    async def ask_and_act(self: PullSubscription, *args: Any) -> None:
        await ask(self, *args)
        act()

    monkeypatch.setattr(PullSubscription, "_ask", ask_and_act)
