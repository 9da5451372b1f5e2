"""What a conductor works with, whether or not it holds the lease."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_pipeline.conductor.metrics import ConductorMetrics
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.config import CommonSettings
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
