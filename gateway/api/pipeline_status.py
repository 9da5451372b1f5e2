"""What is known about the pipeline behind the gateway, and whether it will run what is accepted."""

from __future__ import annotations

import msgspec

from broker_pipeline.errors import StateError, TransportError
from broker_pipeline.messages.gateway import PipelineStatus, QueueStatus, Readiness
from broker_pipeline.messages.status import SERVING_STATES, ConductorStatus
from broker_pipeline.state.redis_client import check_takes_writes
from gateway.wiring import Gateway

OK = "ok"
_REMEMBERED_S = 30.0
"""For so long a gateway that could not store a job is not ready; then it may try again."""


async def read_status(gateway: Gateway) -> PipelineStatus:
    """Gather everything that `GET /v1/status` shows. Raises `StateError` or `TransportError`."""
    depth = await gateway.queue.depth()
    counts = await gateway.store.counts()
    return PipelineStatus(
        pipeline=gateway.settings.common.pipeline,
        workers=tuple(await gateway.registry.workers()),
        conductor=await gateway.registry.conductor_status(),
        queue=QueueStatus(num_waiting=depth.num_waiting, num_in_progress=depth.num_in_progress),
        jobs=msgspec.structs.asdict(counts),
    )


async def read_readiness(gateway: Gateway) -> Readiness:
    """Check NATS, Redis, and that the conductor has a route and a vision worker."""
    checks = {
        "gateway": "stopping" if gateway.stopping.is_set() else OK,
        "nats": await _check_nats(gateway),
    }
    try:
        await check_takes_writes(gateway.redis, gateway.settings.common.namespace)
        checks["redis"] = OK
        checks |= _check_pipeline(await gateway.registry.conductor_status())
    except StateError as error:
        checks |= {"redis": error.message, "route": "unknown", "vision": "unknown"}
    return Readiness(ready=all(check == OK for check in checks.values()), checks=checks)


async def _check_nats(gateway: Gateway) -> str:
    if not gateway.transport.is_connected:
        return "not connected"
    try:
        await gateway.queue.depth()
    except TransportError as error:
        return error.message
    # JetStream answers questions when its disk is full, and stores nothing until its server is started again.
    if error_or_none := gateway.jobs.not_stored(_REMEMBERED_S):
        return f"{error_or_none.message}; if the server's log says that its disk is full, free some and restart it"
    return OK


def _check_pipeline(status: ConductorStatus | None) -> dict[str, str]:
    if status is None:
        return {"route": "no conductor is active", "vision": "unknown"}
    missing = ", ".join(f"{blocks.start} to {blocks.stop - 1}" for blocks in status.missing_blocks)
    no_route = f"no ready stage holds blocks {missing}" if missing else "the ready stages' blocks do not fit together"
    has_vision = any(worker.state in SERVING_STATES for worker in status.vision)
    return {"route": OK if status.routes else no_route, "vision": OK if has_vision else "no vision worker is ready"}
