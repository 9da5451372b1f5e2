"""The state of the whole system for Prometheus: read when it is asked for, so that every gateway shows the same."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.messages.workers import TransportCounts
from broker_pipeline.worker_metrics import transport_families, worker_families

PREFIX = "broker_pipeline"

_OF_CONDUCTOR: tuple[tuple[str, str, Callable[[ConductorStatus], float]], ...] = (
    ("routes", "Chains of stages that hold the whole model.", lambda conductor: len(conductor.routes)),
    ("tokens_per_second", "Tokens sampled, lately.", lambda conductor: conductor.tokens_per_s),
    (
        "replays",
        "Attempts beyond the first that the conductors have begun.",
        lambda conductor: conductor.num_replays,
    ),
    (
        "preemptions",
        "Times that a session gave its KV to older ones.",
        lambda conductor: conductor.num_preemptions,
    ),
    (
        "prompt_tokens",
        "Tokens of the prompts that the conductors of now have sent.",
        lambda conductor: conductor.num_prompt_tokens,
    ),
    (
        "copied_prompt_tokens",
        "Those of them whose KV was copied from another session.",
        lambda conductor: conductor.num_copied_tokens,
    ),
    (
        "draft_tokens",
        "Tokens that the conductors of now have guessed, and had verified.",
        lambda conductor: conductor.num_draft_tokens,
    ),
    ("accepted_draft_tokens", "Those of them that were right.", lambda conductor: conductor.num_accepted_tokens),
    (
        "kept_prefixes",
        "Beginnings that are kept of sessions that have finished.",
        lambda conductor: conductor.kept.num_prefixes,
    ),
    ("kept_prefix_tokens", "Tokens of the kept beginnings.", lambda conductor: conductor.kept.num_tokens),
    (
        "kept_prefix_hits",
        "Sessions that the conductors of now have let begin with a kept one.",
        lambda conductor: conductor.kept.num_hits,
    ),
    (
        "kept_prefix_hit_tokens",
        "Tokens that these had copied.",
        lambda conductor: conductor.kept.num_hit_tokens,
    ),
    (
        "kept_prefix_evictions",
        "Kept beginnings that the conductors of now have closed for room.",
        lambda conductor: conductor.kept.num_evictions,
    ),
    ("captions_per_second", "Jobs that succeeded, lately.", lambda conductor: conductor.captions_per_s),
)


class SystemMetrics(Collector):
    """What queue, stores and conductor tell, and what this process's own messages met."""

    def __init__(self, name: str, own_counts: Callable[[], TransportCounts]) -> None:
        self.is_up = False
        """Whether NATS and Redis answered when they were asked last."""
        self.status: PipelineStatus | None = None
        """What was read last."""
        self.redis_memory_used = 0.0
        """The share of `maxmemory`, 0 where there is none."""
        self._name = name
        self._own_counts = own_counts

    def collect(self) -> Iterator[Metric]:
        """Yield everything that is known."""
        yield _family("up", "Whether NATS and Redis answered when this was asked.", {(): self.is_up})
        used = {(): self.redis_memory_used}
        yield _family("redis_memory_used", "Share of Redis' maxmemory that is used; 0 where it has none.", used)
        conductor = self.status.conductor if self.status else None
        for name, text, read in _OF_CONDUCTOR:
            yield _family(name, text, {(): read(conductor) if conductor else 0.0})
        if self.status is not None:
            yield from _states(self.status)
        processes = {self._name: self._own_counts()}
        if conductor is not None:
            yield from worker_families(PREFIX, conductor)
            processes |= conductor.transport
        yield from transport_families(PREFIX, processes)


def _states(status: PipelineStatus) -> Iterator[Metric]:
    queue = {("waiting",): status.queue.num_waiting, ("in_progress",): status.queue.num_in_progress}
    yield _family("queue_jobs", "Jobs in the work queue.", queue, "state")
    jobs = {(name,): count for name, count in status.jobs.items()}
    yield _family("jobs", "Jobs by status; finished ones since Redis began.", jobs, "status")
    left = {(host,): ends_at - time.time() for host, ends_at in status.certificates.items()}
    yield _family("certificate_seconds_left", "Until a host's certificate, or the servers', ends.", left, "host")
    workers = Counter((str(worker.role), str(worker.state)) for worker in status.workers)
    yield _family("workers", "Live workers.", workers, "role", "state")


def _family(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for values_of_labels, value in values.items():
        family.add_metric(values_of_labels, value)
    return family
