"""Structured logs: one line per event on standard error, JSON or readable."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import EventDict, Processor

from broker_pipeline.process.log_rate import LogRateLimit
from broker_pipeline.tracing.job_traces import trace_id

LogFormat = Literal["auto", "json", "console"]


def configure_logs(
    service: str, *, log_format: LogFormat = "auto", level: str = "info", has_traces: bool = False
) -> None:
    """Route structlog and the standard library's logging to standard error.

    `auto` writes readable lines to a terminal and JSON elsewhere. With `has_traces`, lines about jobs name their trace.
    """
    as_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([_name_trace] if has_traces else []),
    ]
    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if as_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_as_json)]
    )
    rate_limit = LogRateLimit()
    level_number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[rate_limit, *shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level_number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    _route_standard_logging(shared, renderer, rate_limit)


def log_errors_only() -> None:
    """Keep the logs of a command whose output is for people to its errors."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def _name_trace(_logger: object, _method: str, fields: EventDict) -> EventDict:
    if isinstance(job_id := fields.get("job") or fields.get("session"), str):
        fields["trace_id"] = trace_id(job_id)
    return fields


def _as_json(fields: dict[str, Any], default: Callable[[Any], Any]) -> str:
    try:
        return orjson.dumps(fields, default=default).decode()
    except TypeError:  # a file's name that is no UTF-8, a number of more than 64 bits: no reason to lose the line
        return json.dumps(fields, default=default)


def _route_standard_logging(shared: list[Processor], renderer: list[Processor], rate_limit: LogRateLimit) -> None:
    """Give lines of libraries the same form; only their warnings are of interest."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(formatter)
    stream.addFilter(lambda line: rate_limit.take(line.name, line.levelname.lower()) is not None)
    root = logging.getLogger()
    root.handlers = [stream]
    root.setLevel(logging.WARNING)
