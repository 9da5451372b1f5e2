"""What a conductor works with: whether or not it holds a lease, and in a tenure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from broker_pipeline.conductor.metrics import ConductorMetrics
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.config import CommonSettings
from broker_pipeline.scheduling.routes import PipelineIdentity
from broker_pipeline.state.lease import Fence
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Connections, model, settings; `instance` names this process."""

    transport: Transport
    redis: RedisClient
    model: TextModel
    common: CommonSettings
    settings: ConductorSettings
    instance: str
    metrics: ConductorMetrics = field(default_factory=ConductorMetrics)
    clock: Callable[[], float] = time.monotonic
    """Says the time in seconds, as the event loop counts it."""

    @property
    def identity(self) -> PipelineIdentity:
        """What workers have to agree on; no dtype where that is the first stage's to say."""
        facts, dtype = self.model.facts, self.settings.dtype
        return PipelineIdentity(
            pipeline=self.common.pipeline,
            fingerprint=facts.fingerprint,
            dtype="" if dtype == "auto" else dtype,
            num_layers=facts.num_layers,
        )


@dataclass(frozen=True, slots=True)
class Term:
    """What a tenure is: a share, and the right to conduct it."""

    share: str
    epoch: int
    lease_held: Callable[[], bool]
    """Whether nobody else can conduct the share at this moment."""
    fence: Fence
    """The same for Redis to look at."""
    taken: Callable[[], Iterable[str]]
    """Names the deliveries that this conductor has, of all its shares."""
    num_shares: Callable[[], int]
    """How many shares there are at this moment: all of them ask the same vision workers."""
    is_handed_over: Callable[[], bool] = lambda: False
    """Whether this conductor ends and another one is there: jobs wait for nothing here then."""
