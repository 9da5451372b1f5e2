"""Asks a gateway for the state of its pipeline."""

from __future__ import annotations

import aiohttp

from broker_pipeline.errors import ConfigurationError, GatewayUnreachableError

_TIMEOUT_S = 10.0


async def fetch_status_json(gateway_url: str) -> bytes:
    """Return the body of `GET /v1/status`.

    Raises `GatewayUnreachableError` when nothing answers, or something that is no gateway.
    """
    url = gateway_url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{gateway_url} is not the http:// URL of a gateway", field="gateway")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as http,
            http.get(f"{url}/v1/status") as answer,
        ):
            body = await answer.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise GatewayUnreachableError(
            f"no gateway answers at {url}; start one with `broker-pipeline up`, "
            "or name a running one with --gateway URL",
            field="gateway",
        ) from error
    if answer.status != 200:
        raise GatewayUnreachableError(
            f"{url}/v1/status answers {answer.status}: {body[:300].decode(errors='replace')}", field="gateway"
        )
    return body
