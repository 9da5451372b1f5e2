"""How workers spend their time and what messages met, for Prometheus, whoever shows a conductor's status."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from broker_pipeline.messages.status import ConductorStatus, HedgeCounts, StageStatus, VisionStatus, WorkerTotals
from broker_pipeline.messages.workers import CarriedCounts, TransportCounts

W = TypeVar("W", StageStatus, VisionStatus)
C = TypeVar("C", HedgeCounts, VisionStatus, WorkerTotals, TransportCounts, CarriedCounts)
Counters: TypeAlias = tuple[tuple[str, str, Callable[[C], float]], ...]
"""Of each counter its name, its help, and where it is read."""

_STAGE_COUNTERS: Counters[WorkerTotals] = (
    ("busy_seconds", "Seconds in which it computed.", lambda totals: totals.busy_s),
    ("bubble_seconds", "Seconds in which it held sessions and had nothing to compute.", lambda totals: totals.bubble_s),
    ("queue_seconds", "Seconds that microbatches waited in it, added up.", lambda totals: totals.queue_s),
    ("microbatches", "Microbatches computed.", lambda totals: totals.num_microbatches),
    ("tokens", "Tokens computed, prompts included.", lambda totals: totals.num_tokens),
)
_VISION_COUNTERS: Counters[WorkerTotals] = (
    ("busy_seconds", "Seconds in which its tower encoded.", lambda totals: totals.busy_s),
    ("batches", "Batches of pictures encoded.", lambda totals: totals.num_microbatches),
    ("visual_tokens", "Visual tokens encoded.", lambda totals: totals.num_tokens),
    ("cache_hits", "Pictures found encoded already.", lambda totals: totals.num_cache_hits),
    ("cache_misses", "Pictures not found encoded.", lambda totals: totals.num_cache_misses),
)

_OVERTAKEN: Counters[VisionStatus] = (
    ("overtaken", "Requests that another worker has answered in its place.", lambda worker: worker.num_overtaken),
)
_HEDGE_COUNTERS: Counters[HedgeCounts] = (
    ("requests", "Sessions that vision workers have prepared.", lambda counts: counts.num_requests),
    ("hedges", "Requests made of a second vision worker as well.", lambda counts: counts.num_hedges),
    ("hedges_won", "Hedges that were answered first.", lambda counts: counts.num_won),
)

_TRANSPORT_COUNTERS: Counters[TransportCounts] = (
    ("reconnects", "Connections to NATS lost and made again.", lambda counts: counts.num_reconnects),
    ("dropped_messages", "Messages for which there was no room.", lambda counts: counts.num_dropped),
    ("malformed_messages", "Messages that broke the contract.", lambda counts: counts.num_malformed),
    ("incomplete_messages", "Messages of which parts were missing.", lambda counts: counts.num_incomplete),
    ("edges_lost", "Edges to other workers that ended too early.", lambda counts: counts.num_edges_lost),
)

_EDGE_COUNTERS: Counters[CarriedCounts] = (
    ("payloads", "Payloads sent to other workers, by what carried them.", lambda counts: counts.num_messages),
    ("payload_bytes", "Bytes of these.", lambda counts: counts.num_bytes),
)


def worker_families(prefix: str, status: ConductorStatus) -> Iterator[Metric]:
    """Yield `<prefix>_stage_busy`, `_stage_bubble`, `_vision_busy`, the counters behind them, and hedges.

    Shares are of the last ten seconds. Counters begin with a worker's process, and again where it is started again.
    """
    busy = "Share of time spent computing, lately."
    bubble = "Share of time with sessions and nothing to compute, lately."
    yield _gauge(f"{prefix}_stage_busy", busy, status.stages, lambda stage: stage.busy)
    yield _gauge(f"{prefix}_stage_bubble", bubble, status.stages, lambda stage: stage.bubble)
    yield _gauge(f"{prefix}_vision_busy", busy, status.vision, lambda worker: worker.busy)
    stages = {stage.worker: stage.totals for stage in status.stages}
    yield from _counters(f"{prefix}_stage", _STAGE_COUNTERS, "worker", stages)
    vision = {worker.worker: worker.totals for worker in status.vision}
    yield from _counters(f"{prefix}_vision", _VISION_COUNTERS, "worker", vision)
    overtaken = {worker.worker: worker for worker in status.vision}
    yield from _counters(f"{prefix}_vision", _OVERTAKEN, "worker", overtaken)
    yield from _labelled(f"{prefix}_vision", _HEDGE_COUNTERS, (), {(): status.hedges})


def transport_families(prefix: str, processes: Mapping[str, TransportCounts]) -> Iterator[Metric]:
    """Yield `<prefix>_transport_reconnects` and what else is counted of messages, by process, and payloads by edge."""
    yield from _counters(f"{prefix}_transport", _TRANSPORT_COUNTERS, "process", processes)
    carried: Mapping[tuple[str, ...], CarriedCounts] = {
        (name, edge): each for name, counts in processes.items() for edge, each in counts.carried.items()
    }
    yield from _labelled(f"{prefix}_transport", _EDGE_COUNTERS, ("process", "edge"), carried)


def _counters(prefix: str, counters: Counters[C], label: str, counted: Mapping[str, C]) -> Iterator[Metric]:
    return _labelled(prefix, counters, (label,), {(name,): counts for name, counts in counted.items()})


def _labelled(
    prefix: str, counters: Counters[C], labels: Sequence[str], counted: Mapping[tuple[str, ...], C]
) -> Iterator[Metric]:
    for name, text, read in counters:
        family = CounterMetricFamily(f"{prefix}_{name}", text, labels=labels)
        for values, counts in counted.items():
            family.add_metric(values, read(counts))
        yield family


def _gauge(name: str, text: str, workers: Iterable[W], read: Callable[[W], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["worker"])
    for worker in workers:
        family.add_metric([worker.worker], read(worker))
    return family
