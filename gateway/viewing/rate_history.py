"""The pipeline's rates over the last hour, in Redis: every gateway adds to them, and all answer alike.

gateway ──every 10 s──► add, unless another one just has ──► the newest 360 samples
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import StateError, TransportError
from broker_pipeline.messages.gateway import PipelineStatus, RateHistory, RateSample
from broker_pipeline.process.outage_log import OutageLog
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.script_runner import ScriptRunner

INTERVAL_S = 10.0
NUM_KEPT = 360
_LEAST_S = 0.8 * INTERVAL_S
_KEPT_S = 2 * 3600

_decode = msgspec.json.Decoder(RateSample).decode


class RateHistoryStore:
    """The samples of one pipeline."""

    def __init__(self, redis: RedisClient, namespace: str, pipeline: str, *, least_s: float = _LEAST_S) -> None:
        """Take no two samples within `least_s` seconds."""
        self._redis = redis
        self._key = redis_keys.rates(namespace, pipeline)
        shared = {"least_s": least_s, "num_kept": NUM_KEPT, "for_s": _KEPT_S}
        self._run = ScriptRunner(redis, "rates", [self._key], shared, {self._key: "list"})

    async def add(self, sample: RateSample) -> bool:
        """Add a sample at Redis's time; False when there is one of just now. Raises `StateError`."""
        args = {"sample": msgspec.to_builtins(sample)}
        return bool(await self._run("add", args, "cannot note the pipeline's rates"))

    async def history(self) -> RateHistory:
        """Return the samples of the last hour, oldest first; what is none is left out. Raises `StateError`."""
        return RateHistory(interval_s=INTERVAL_S, samples=tuple(await self._run.mending(self._samples)))

    async def keep(self, read: Callable[[], Awaitable[PipelineStatus]], interval_s: float = INTERVAL_S) -> None:
        """Add a sample now and then, until cancelled; an outage leaves a gap."""
        outages = OutageLog("rates_not_noted", StateError, TransportError)
        while True:
            with outages.outlasting():
                await self.add(sample_of(await read()))
            await asyncio.sleep(interval_s)

    async def _samples(self) -> list[RateSample]:
        with state_errors("cannot read the pipeline's rates"):
            rows: list[bytes] = await self._redis.lrange(self._key, -NUM_KEPT, -1)  # type: ignore[assignment]
        return [sample for row in rows if (sample := _sample(row))]


def sample_of(status: PipelineStatus) -> RateSample:
    """Return what is kept of a pipeline's state."""
    conductor = status.conductor
    return RateSample(
        num_waiting=status.queue.num_waiting,
        num_running=status.jobs.get("running", 0),
        num_failed=status.jobs.get("failed", 0),
        captions_per_s=conductor.captions_per_s if conductor else 0.0,
        tokens_per_s=conductor.tokens_per_s if conductor else 0.0,
    )


def _sample(row: bytes) -> RateSample | None:
    try:
        return _decode(row)
    except msgspec.MsgspecError:
        return None
