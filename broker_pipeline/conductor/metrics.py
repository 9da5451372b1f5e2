"""What the conductor shows, once more for Prometheus; most people scrape the gateway, which shows the whole system."""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.merged_status import merged
from broker_pipeline.messages.status import ConductorStatus, KeptCounts
from broker_pipeline.worker_metrics import transport_families, worker_families

log = structlog.get_logger()

_PREFIX = "broker_pipeline_conductor"


class ConductorMetrics(Collector):
    """Renders the newest status of all shares that this process has whenever somebody scrapes; of none, `active` 0."""

    def __init__(self) -> None:
        self._statuses: dict[str, ConductorStatus] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def start(self, port: int) -> int:
        """Serve on a port (0: any) of the loopback interface, from a thread of its own, and return the port.

        Raises `ConfigurationError`. Nobody is asked for a key here; from other hosts, gateways are to be asked.
        """
        try:
            server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise ConfigurationError(f"cannot serve metrics on port {port}: {error}", field="metrics_port") from error
        bound = int(server.server_port)
        log.info("metrics_served", port=bound)
        return bound

    @property
    def status(self) -> ConductorStatus | None:
        """What there is to show of all shares together."""
        return merged(list(self._statuses.values()))

    def show(self, status: ConductorStatus) -> None:
        """Show a share's newest status."""
        self._statuses[status.share] = status

    def take_back(self, share: str, epoch: int) -> None:
        """Show nothing of a tenure any more."""
        if (shown := self._statuses.get(share)) and shown.epoch == epoch:
            del self._statuses[share]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this moment."""
        status = self.status
        yield _gauge("active", "Whether this conductor conducts.", float(status is not None))
        yield _gauge("shares", "Shares that it has.", len(self._statuses))
        if status is None:
            return
        yield _gauge("tokens_per_second", "Tokens sampled, lately.", status.tokens_per_s)
        yield _gauge("captions_per_second", "Jobs that succeeded, lately.", status.captions_per_s)
        yield _gauge("routes", "Chains of stages that hold the whole model.", len(status.routes))
        yield _gauge("replays", "Attempts beyond the first in this tenure.", status.num_replays)
        yield _gauge("preemptions", "Times that a session gave its KV to older ones.", status.num_preemptions)
        yield _gauge("prompt_tokens", "Tokens of prompts sent in this tenure.", status.num_prompt_tokens)
        yield _gauge("copied_prompt_tokens", "Those whose KV was copied.", status.num_copied_tokens)
        yield _gauge("draft_tokens", "Tokens guessed and verified in this tenure.", status.num_draft_tokens)
        yield _gauge("accepted_draft_tokens", "Those that were right.", status.num_accepted_tokens)
        yield from _kept_gauges(status.kept)
        yield _gauge("uncommitted_tokens", "Tokens that Redis does not hold yet.", status.num_uncommitted_tokens)
        yield _by_label("sessions", "Sessions by what they do.", "state", status.num_sessions)
        yield _by_label("jobs_finished", "Jobs ended in this tenure, by status.", "status", status.num_finished)
        yield _by_label(
            "stage_kv_used_tokens", "Reserved KV.", "worker", {s.worker: s.kv_used_tokens for s in status.stages}
        )
        yield _by_label(
            "stage_kv_kept_tokens",
            "KV kept of sessions that have finished.",
            "worker",
            {s.worker: s.kv_kept_tokens for s in status.stages},
        )
        yield from worker_families(_PREFIX, status)
        yield from transport_families(_PREFIX, status.transport)


def _kept_gauges(kept: KeptCounts) -> Iterator[Metric]:
    yield _gauge("kept_prefixes", "Beginnings kept of sessions that have finished.", kept.num_prefixes)
    yield _gauge("kept_prefix_tokens", "Their tokens.", kept.num_tokens)
    yield _gauge("kept_prefix_hits", "Sessions of this tenure that began with one.", kept.num_hits)
    yield _gauge("kept_prefix_hit_tokens", "Tokens that these had copied.", kept.num_hit_tokens)
    yield _gauge("kept_prefix_evictions", "Those that made room in this tenure.", kept.num_evictions)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)


def _by_label(name: str, text: str, label: str, values: dict[str, int] | dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
