"""The options by which commands find a gateway, and are let in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from broker_pipeline.client.calls import DEFAULT_GATEWAY_URL
from broker_pipeline.config import SECRETS_OPTION, add_options, option
from broker_pipeline.security.credentials import gateway_key_file
from broker_pipeline.security.host_folder import read_secret

F = TypeVar("F", bound=Callable[..., Any])


def gateway_options(function: F) -> F:
    """Add `--gateway`, `--key` and `--secrets` to a command, which gets `gateway` and `key`."""

    @functools.wraps(function)
    def with_key(*args: Any, key: str | None, secrets: str | None, **options: Any) -> Any:
        if key is None and (path := gateway_key_file(secrets)):
            key = read_secret(Path(path))
        return function(*args, key=key, **options)

    return add_options(
        cast("F", with_key),
        (
            SECRETS_OPTION,
            option("--gateway", default=DEFAULT_GATEWAY_URL, metavar="URL", help="Gateway to ask."),
            option(
                "--key",
                default=None,
                show_default=False,
                help="Key to the gateway; better by the variable, since others see command lines. "
                "[default: gateway.key of --secrets, or the token of a `broker-pipeline up` of this machine]",
            ),
        ),
    )
