"""Where traces of jobs go: to an OpenTelemetry collector, if one is named and the extra `otel` is there."""

from __future__ import annotations

import importlib.util
from urllib.parse import urlsplit

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tracing.job_traces import JobTraces


def open_traces(endpoint: str, service: str, namespace: str) -> JobTraces:
    """Return what sends a service's spans to the OpenTelemetry collector at a URL.

    Raises:
        ConfigurationError: the extra `otel` is not installed, or the endpoint is no URL.
    """
    if urlsplit(endpoint).scheme not in ("http", "https"):
        said = f"--otlp-endpoint {endpoint}: a collector is http://HOST:4318 or https://…"
        raise ConfigurationError(said, field="otlp_endpoint")
    if importlib.util.find_spec("opentelemetry") is None:
        said = "--otlp-endpoint needs OpenTelemetry: pip install 'broker-pipeline[otel]'"
        raise ConfigurationError(said, field="otlp_endpoint")
    from broker_pipeline.tracing.open_telemetry import OpenTelemetryTraces  # noqa: PLC0415 - takes the extra

    return OpenTelemetryTraces.to(endpoint, service, namespace)
