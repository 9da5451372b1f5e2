"""Which model will answer: a part of what is asked, so that no run takes another model's captions for its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.errors import GatewayUnreachableError
from broker_pipeline.messages.status import ConductorStatus

_POLL_S = 1.0


async def asked_model(client: GatewayClient, patience_s: float, say: Callable[[str], None]) -> ConductorStatus:
    """Return what the active conductor shows, its model included; waits for one, and says so.

    Raises `GatewayUnreachableError` when there is none within `patience_s` seconds.
    """
    deadline = time.monotonic() + patience_s
    is_told = False
    while (conductor := (await client.status()).conductor) is None:
        if time.monotonic() >= deadline:
            raise GatewayUnreachableError(
                "no conductor is active, so that nobody knows which model would answer; start one with "
                "`broker-pipeline conductor --model ARTIFACTS`",
                field="gateway",
            )
        if not is_told:
            say("no conductor is active: waiting for one, to know which model answers")
        is_told = True
        await asyncio.sleep(_POLL_S)
    return conductor
