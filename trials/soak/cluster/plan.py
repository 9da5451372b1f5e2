"""What a soak runs: the programs of one pipeline with more than one of everything that may be several.

gateway-0, gateway-1     conductor-0 active, conductor-1 stands by     vision-0, vision-1
stage-0 … stage-(S-1)    the model once        stage-S …    spares: further workers for some of the ranges
nats, redis              one of each
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.local.cuts import balanced_cut

SERVERS = ("nats", "redis")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakPlan:
    """Which programs there are and what they are told; addresses are given later."""

    model: Path
    directory: Path
    stages: tuple[BlockRange, ...]
    num_spares: int = 2
    """Ranges that have a second worker; the last ranges first, since losing the sampling stage hurts most."""
    num_gateways: int = 2
    num_conductors: int = 2
    num_vision_workers: int = 2
    kv_tokens: int = 8192
    device: str = "cpu"
    namespace: str = "soak"
    pipeline: str = "main"
    drain_s: float = 5.0
    log_level: str = "info"
    extra_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further flags by command: `gateway`, `conductor`, `vision`, `stage`."""

    @classmethod
    def make(cls, *, model: Path, directory: Path, num_stages: int, **others: object) -> SoakPlan:
        """Cut the model into `num_stages` stages of about equal size."""
        return cls(model=model, directory=directory, stages=balanced_cut(model, num_stages), **others)  # type: ignore[arg-type]

    @property
    def all_stages(self) -> tuple[BlockRange, ...]:
        """The block range of every stage worker, spares last."""
        spares = tuple(reversed(self.stages))[: self.num_spares]
        return (*self.stages, *spares)

    @property
    def services(self) -> tuple[str, ...]:
        """Names of our own services."""
        return (
            *_numbered("gateway", self.num_gateways),
            *_numbered("conductor", self.num_conductors),
            *_numbered("vision", self.num_vision_workers),
            *_numbered("stage", len(self.all_stages)),
        )

    @property
    def components(self) -> tuple[str, ...]:
        """Names of everything that a fault may hit."""
        return (*SERVERS, *self.services)

    def arguments(self, name: str, *, address: str, port: int, nats_url: str, redis_url: str) -> tuple[str, ...]:
        """Return what follows `broker-pipeline` for a service; `port` is for gateways."""
        command, _, number = name.partition("-")
        own = self._own_flags(command, int(number), name, address, port)
        common = {
            "--nats-url": nats_url,
            "--redis-url": redis_url,
            "--namespace": self.namespace,
            "--pipeline": self.pipeline,
            "--drain-s": self.drain_s,
            "--log-level": self.log_level,
            "--log-format": "json",
        }
        return (command, *_flags(own), *self.extra_arguments.get(command, ()), *_flags(common))

    def _own_flags(self, command: str, number: int, name: str, address: str, port: int) -> dict[str, object]:
        if command == "gateway":
            return {"--host": address, "--port": port}
        if command == "conductor":
            return {"--model": self.model}
        worker = {"--model": self.model, "--name": name, "--device": self.device, "--threads": 1}
        if command == "vision":
            return worker
        blocks = self.all_stages[number]
        return worker | {"--blocks": f"{blocks.start}:{blocks.stop}", "--kv-tokens": self.kv_tokens}


def _numbered(role: str, count: int) -> tuple[str, ...]:
    return tuple(f"{role}-{number}" for number in range(count))


def _flags(values: Mapping[str, object]) -> Iterator[str]:
    for flag, value in values.items():
        yield from (flag, str(value))
