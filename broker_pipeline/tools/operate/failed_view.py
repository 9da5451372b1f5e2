"""Failed jobs as a person reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.process.terminal import plain_table

_WIDTH = 160


def wide_console() -> Console:
    """Return a console on which a line of the table is one line, also where it goes into a pipe."""
    console = Console(highlight=False)
    return console if console.width >= _WIDTH else Console(highlight=False, width=_WIDTH)


def render_failures(records: Sequence[JobRecord], now: float) -> RenderableType:
    """Return a table of jobs, one line each."""
    table = plain_table()
    widest_code = max((len(record.error.code) for record in records if record.error), default=4)
    for heading, width in (("job", 28), ("failed", 10), ("attempts", 8), ("sent again", 10), ("code", widest_code)):
        table.add_column(heading, no_wrap=True, min_width=width)
    table.add_column("why", overflow="ellipsis", no_wrap=True, min_width=20)
    for record in records:
        error = record.error or Failure("unknown", "")
        table.add_row(
            record.job_id,
            _ago(now - (record.finished_at or now)),
            str(record.attempt),
            str(record.num_retries or ""),
            error.code,
            error.message,
        )
    return table


def render_job(record: JobRecord) -> RenderableType:
    """Return everything that is known about one job, its earlier ends included."""
    facts = plain_table()
    facts.show_header = False
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(record):
        facts.add_row(name, text)
    parts: list[RenderableType] = [facts]
    if record.failures:
        parts += [Text(""), Text("earlier ends", style="bold"), _past(record)]
    return Group(*parts)


def _facts(record: JobRecord) -> Iterator[tuple[str, str]]:
    yield "job", record.job_id
    yield "status", record.status
    yield "created", _clock(record.created_at)
    yield "ended", _clock(record.finished_at)
    yield "attempts", str(record.attempt)
    yield "sent again", f"{record.num_retries} times"
    for name, text in record.metadata.items():
        yield f"metadata {name}", text
    if record.error is not None:
        yield "code", record.error.code
        yield "why", record.error.message
        if record.error.field:
            yield "field", record.error.field
    if record.result is not None:
        yield "text", record.result.text


def _past(record: JobRecord) -> Table:
    table = plain_table("ended", "status", "attempts", "code")
    table.add_column("why", overflow="fold")
    for past in record.failures:
        error = past.error or Failure("", "")
        table.add_row(_clock(past.finished_at), past.status, str(past.attempt), error.code, error.message)
    return table


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} ago"
    return f"{max(0, int(seconds))} s ago"
