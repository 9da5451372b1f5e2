"""The options by which commands find a gateway, and are let in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from broker_pipeline.client.calls import DEFAULT_GATEWAY_URL
from broker_pipeline.config import add_options, option

F = TypeVar("F", bound=Callable[..., Any])


def gateway_options(function: F) -> F:
    """Add `--gateway` and `--key` to a command."""
    return add_options(
        function,
        (
            option("--gateway", default=DEFAULT_GATEWAY_URL, metavar="URL", help="Gateway to ask."),
            option(
                "--key",
                default=None,
                show_default=False,
                help="Key to the gateway; better by the variable, since others see command lines. "
                "[default: the token of a `broker-pipeline up` of this machine]",
            ),
        ),
    )
