"""Sends what is done for jobs to an OpenTelemetry collector. Needs the extra `otel`; only then is it imported."""

from __future__ import annotations

import random

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker_pipeline.tracing.activities import Activity
from broker_pipeline.tracing.clock import SystemClock
from broker_pipeline.tracing.events import Fact
from broker_pipeline.tracing.job_traces import places, span_id, trace_id

_PATH = "/v1/traces"
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OpenTelemetryTraces:
    """Makes spans and gives them to `processor`, which sends them from its own thread and drops what is too much."""

    def __init__(self, processor: SpanProcessor, service: str, namespace: str) -> None:
        self.worker = service
        self._processor = processor
        self._resource = Resource.create({"service.name": f"broker-pipeline-{service}", "service.namespace": namespace})
        self._offset_ns = SystemClock().anchor().offset_ns

    @classmethod
    def to(cls, endpoint: str, service: str, namespace: str) -> OpenTelemetryTraces:
        """Send to the OTLP/HTTP collector at a URL; OpenTelemetry's own variables say the rest (headers, queues)."""
        exporter = OTLPSpanExporter(endpoint.rstrip("/").removesuffix(_PATH) + _PATH)
        return cls(BatchSpanProcessor(exporter), service, namespace)

    def take(self, activity: Activity, start_ns: int, stop_ns: int, facts: dict[str, Fact]) -> None:
        """Send what was done for the job `facts["session"]`; times are of the monotonic clock."""
        job_id, attempt = str(facts["session"]), int(facts.get("attempt", 0))
        place, above = places(activity, attempt)
        shown = {name: fact for name, fact in facts.items() if name != "traceparent"} | {"worker": self.worker}
        span = ReadableSpan(
            name=place or activity.name,
            context=_context(job_id, place),
            parent=_context(job_id, above) if above else None,
            resource=self._resource,
            attributes={f"broker_pipeline.{name}": fact for name, fact in shown.items()},
            links=_links(str(facts.get("traceparent", ""))),
            start_time=start_ns + self._offset_ns,
            end_time=max(start_ns, stop_ns) + self._offset_ns,
        )
        self._processor.on_end(span)

    def stop(self) -> None:
        """Send what is left, for as long as the SDK allows."""
        self._processor.shutdown()


def _context(job_id: str, place: str) -> SpanContext:
    span = span_id(job_id, place) if place else random.getrandbits(64)
    return SpanContext(int(trace_id(job_id), 16), span or 1, is_remote=True, trace_flags=_SAMPLED)


def _links(traceparent: str) -> list[Link]:
    context = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": traceparent})).get_span_context()
    return [Link(context)] if context.is_valid else []
