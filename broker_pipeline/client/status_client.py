"""Asks a gateway for the state of its pipeline."""

from __future__ import annotations

import aiohttp
import msgspec

from broker_pipeline.errors import ConfigurationError, GatewayUnreachableError
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.messages.workers import WorkerRecord

_TIMEOUT_S = 10.0


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs in the work queue: waiting, and handed to a conductor but not finished."""

    num_waiting: int
    num_in_progress: int


class PipelineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `GET /v1/status`."""

    pipeline: str
    workers: tuple[WorkerRecord, ...]
    conductor: ConductorStatus | None
    queue: QueueStatus
    jobs: dict[str, int]


async def fetch_status(gateway_url: str) -> PipelineStatus:
    """Return the state of the pipeline behind a gateway; raises as `fetch_status_json` does."""
    return parse_status(await fetch_status_json(gateway_url))


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
        said = body[:300].decode(errors="replace")
        raise GatewayUnreachableError(f"{url}/v1/status answers {answer.status}: {said}", field="gateway")
    return body


def parse_status(body: bytes) -> PipelineStatus:
    """Decode the body; raises `GatewayUnreachableError` when it is not that of a gateway of this version."""
    try:
        return msgspec.json.decode(body, type=PipelineStatus)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GatewayUnreachableError(
            f"what answers is not a gateway of this version: {error}", field="gateway"
        ) from error
