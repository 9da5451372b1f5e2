"""What this gateway has done, for Prometheus; `system_metrics` has the state of the whole system.

Processes that share a port count into files of one directory (prometheus_client's multiprocess mode, which their
supervisor turns on by its environment variable), so that whichever of them is asked shows the sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from broker_pipeline.messages.workers import TransportCounts
from gateway.system_metrics import PREFIX, SystemMetrics

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Read by prometheus_client when it is imported."""
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The metrics of a gateway, this process alone or with those that share its port."""

    def __init__(self, name: str, own_counts: Callable[[], TransportCounts]) -> None:
        """`own_counts` is what this process's messages met; `name` is what they are shown under."""
        self._shown = CollectorRegistry()
        is_shared = MULTIPROCESS_VARIABLE in os.environ
        registry = None if is_shared else self._shown
        self.requests = Counter(
            f"{PREFIX}_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            f"{PREFIX}_http_request_seconds",
            "From the first byte of a request to the last of its answer; event streams and long polls are left out.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.submission_seconds = Histogram(
            f"{PREFIX}_submission_seconds",
            "Of requests that make a job: until it is read, checked and has its pictures (read), then until NATS and "
            "Redis have it (store).",
            ["part"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.event_seconds = Histogram(
            f"{PREFIX}_event_seconds",
            "From the arrival of a job's tokens to their being handed to the client's connection, which may be slow.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.submissions = Counter(
            f"{PREFIX}_jobs_submitted",
            "Submissions by outcome: accepted, repeated, or the error's code.",
            ["outcome"],
            registry=registry,
        )
        self.retries = Counter(
            f"{PREFIX}_jobs_retried",
            "Retries of failed and cancelled jobs by outcome: accepted, or the error's code.",
            ["outcome"],
            registry=registry,
        )
        self.swept = Counter(
            f"{PREFIX}_swept",
            "What housekeeping removed (media, jobs, files) and enqueued (lost: jobs of a queue that was lost).",
            ["what"],
            registry=registry,
        )
        self.in_flight = Gauge(
            f"{PREFIX}_http_requests_in_flight",
            "Requests begun and not answered, streams included.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.uploads = Gauge(
            f"{PREFIX}_uploads_in_flight",
            "Request bodies being read or stored.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.streams = Gauge(
            f"{PREFIX}_streams_open",
            "Event streams and long polls open.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.upload_bytes = Counter(f"{PREFIX}_media_bytes", "Bytes of media accepted.", registry=registry)
        self.streamed_tokens = Counter(
            f"{PREFIX}_streamed_tokens", "Tokens sent over event streams.", registry=registry
        )
        if is_shared:
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]
        self.system = SystemMetrics(name, own_counts)
        self._shown.register(self.system)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._shown)
