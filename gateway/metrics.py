"""What Prometheus can ask. Counters live in this process; states of the whole system are read when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.messages.workers import TransportCounts
from broker_pipeline.worker_metrics import transport_families, worker_families

_PREFIX = "broker_pipeline"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class _WorkCollector(Collector):
    """What the conductor tells of workers and of everybody's messages, and what this gateway's messages met."""

    def __init__(self, own_counts: Callable[[], TransportCounts]) -> None:
        self.conductor: ConductorStatus | None = None
        self._own_counts = own_counts

    def collect(self) -> Iterator[Metric]:
        processes = {"gateway": self._own_counts()}
        if self.conductor is not None:
            yield from worker_families(_PREFIX, self.conductor)
            processes |= self.conductor.transport
        yield from transport_families(_PREFIX, processes)


class Metrics:
    """The metrics of one gateway process."""

    def __init__(self, own_counts: Callable[[], TransportCounts]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            f"{_PREFIX}_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            f"{_PREFIX}_http_request_seconds",
            "From the first byte of a request to the last of its answer; event streams and long polls are left out.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.submissions = Counter(
            f"{_PREFIX}_jobs_submitted",
            "Submissions by outcome: accepted, repeated, or the error's code.",
            ["outcome"],
            registry=registry,
        )
        self.retries = Counter(
            f"{_PREFIX}_jobs_retried",
            "Retries of failed and cancelled jobs by outcome: accepted, or the error's code.",
            ["outcome"],
            registry=registry,
        )
        self.swept = Counter(
            f"{_PREFIX}_swept",
            "What housekeeping removed (media, jobs) and enqueued (queued: retries that a gateway died before).",
            ["what"],
            registry=registry,
        )
        self.in_flight = Gauge(
            f"{_PREFIX}_http_requests_in_flight",
            "Requests begun and not answered, streams included.",
            registry=registry,
        )
        self.uploads = Gauge(f"{_PREFIX}_uploads_in_flight", "Request bodies being read or stored.", registry=registry)
        self.streams = Gauge(f"{_PREFIX}_streams_open", "Event streams and long polls open.", registry=registry)
        self.upload_bytes = Counter(f"{_PREFIX}_media_bytes", "Bytes of media accepted.", registry=registry)
        self.streamed_tokens = Counter(
            f"{_PREFIX}_streamed_tokens", "Tokens sent over event streams.", registry=registry
        )
        self.up = Gauge(f"{_PREFIX}_up", "Whether NATS and Redis answered when this was asked.", registry=registry)
        self.queue = Gauge(f"{_PREFIX}_queue_jobs", "Jobs in the work queue.", ["state"], registry=registry)
        self.jobs = Gauge(
            f"{_PREFIX}_jobs", "Jobs by status; finished ones since Redis began.", ["status"], registry=registry
        )
        self.routes = Gauge(f"{_PREFIX}_routes", "Chains of stages that hold the whole model.", registry=registry)
        self.token_rate = Gauge(f"{_PREFIX}_tokens_per_second", "Tokens sampled, lately.", registry=registry)
        self.replays = Gauge(
            f"{_PREFIX}_replays", "Attempts beyond the first that the active conductor has begun.", registry=registry
        )
        self.caption_rate = Gauge(f"{_PREFIX}_captions_per_second", "Jobs that succeeded, lately.", registry=registry)
        self.workers = Gauge(f"{_PREFIX}_workers", "Live workers.", ["role", "state"], registry=registry)
        self._work = _WorkCollector(own_counts)
        registry.register(self._work)

    def show(self, status: PipelineStatus) -> None:
        """Take over the state of the whole system."""
        self.up.set(1)
        self.queue.labels("waiting").set(status.queue.num_waiting)
        self.queue.labels("in_progress").set(status.queue.num_in_progress)
        for name, count in status.jobs.items():
            self.jobs.labels(name).set(count)
        self.workers.clear()
        for worker in status.workers:
            self.workers.labels(worker.role, worker.state).inc()

        self._show_conductor(status.conductor)

    def _show_conductor(self, conductor: ConductorStatus | None) -> None:
        self._work.conductor = conductor
        self.routes.set(len(conductor.routes) if conductor else 0)
        self.token_rate.set(conductor.tokens_per_s if conductor else 0.0)
        self.replays.set(conductor.num_replays if conductor else 0)
        self.caption_rate.set(conductor.captions_per_s if conductor else 0.0)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)
