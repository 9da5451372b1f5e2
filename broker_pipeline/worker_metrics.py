"""How workers spend their time and what messages met, for Prometheus, whoever shows a conductor's status."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from broker_pipeline.messages.status import ConductorStatus, StageStatus, VisionStatus, WorkerTotals
from broker_pipeline.messages.workers import TransportCounts

W = TypeVar("W", StageStatus, VisionStatus)

_COUNTERS: tuple[tuple[str, str, Callable[[WorkerTotals], float]], ...] = (
    ("busy_seconds", "Seconds in which it computed.", lambda totals: totals.busy_s),
    ("bubble_seconds", "Seconds in which it held sessions and had nothing to compute.", lambda totals: totals.bubble_s),
    ("queue_seconds", "Seconds that microbatches waited in it, added up.", lambda totals: totals.queue_s),
    ("microbatches", "Microbatches computed.", lambda totals: totals.num_microbatches),
    ("tokens", "Tokens computed, prompts included.", lambda totals: totals.num_tokens),
)

_TRANSPORT_COUNTERS: tuple[tuple[str, str, Callable[[TransportCounts], float]], ...] = (
    ("reconnects", "Connections to NATS lost and made again.", lambda counts: counts.num_reconnects),
    ("dropped_messages", "Messages for which there was no room.", lambda counts: counts.num_dropped),
    ("malformed_messages", "Messages that broke the contract.", lambda counts: counts.num_malformed),
    ("incomplete_messages", "Messages of which parts were missing.", lambda counts: counts.num_incomplete),
)


def worker_families(prefix: str, status: ConductorStatus) -> Iterator[Metric]:
    """Yield `<prefix>_stage_busy`, `_stage_bubble`, `_vision_busy` and the counters behind them, by worker.

    Shares are of the last ten seconds. Counters begin with a worker's process, and again where it is started again.
    """
    busy = "Share of time spent computing, lately."
    bubble = "Share of time with sessions and nothing to compute, lately."
    yield _gauge(f"{prefix}_stage_busy", busy, status.stages, lambda stage: stage.busy)
    yield _gauge(f"{prefix}_stage_bubble", bubble, status.stages, lambda stage: stage.bubble)
    yield _gauge(f"{prefix}_vision_busy", busy, status.vision, lambda worker: worker.busy)
    for name, text, read in _COUNTERS:
        family = CounterMetricFamily(f"{prefix}_stage_{name}", text, labels=["worker"])
        for stage in status.stages:
            family.add_metric([stage.worker], read(stage.totals))
        yield family


def transport_families(prefix: str, processes: Mapping[str, TransportCounts]) -> Iterator[Metric]:
    """Yield `<prefix>_transport_reconnects` and what else is counted of messages, by process."""
    for name, text, read in _TRANSPORT_COUNTERS:
        family = CounterMetricFamily(f"{prefix}_transport_{name}", text, labels=["process"])
        for process, counts in processes.items():
            family.add_metric([process], read(counts))
        yield family


def _gauge(name: str, text: str, workers: Iterable[W], read: Callable[[W], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["worker"])
    for worker in workers:
        family.add_metric([worker.worker], read(worker))
    return family
