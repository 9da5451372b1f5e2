"""The summary of a profile as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker_pipeline.process.terminal import plain_table
from broker_pipeline.tools.trace.summary import ProfileSummary, WorkerSummary

_HOST_ORDER = (
    *("plan", "build", "receive", "check", "to device", "launch", "step", "collect", "to host"),
    *("encode", "send", "complete", "commit", "tell"),
)

_SHORT = ("encode ", "send ", "receive ")
"""What is left to the JSON: each is a matter of microseconds."""


def render_summary(summary: ProfileSummary) -> RenderableType:
    """Return tables of shares, of the parts of a microbatch's time, and of the CPU work for it."""
    parts: list[RenderableType] = [Text(line) for line in _head(summary)]
    with_microbatches = [worker for worker in summary.workers if worker.num_microbatches]
    parts += [Text(""), _shares(summary.workers)]
    if with_microbatches:
        parts += [Text(""), _host_work(with_microbatches)]
    if any(worker.other for worker in summary.workers):
        parts += [Text(""), _other_work(summary.workers)]
    return Group(*parts)


def _head(summary: ProfileSummary) -> Iterator[str]:
    yield f"{summary.span_s:.1f} s, {summary.num_microbatches} microbatches that the conductor saw whole"
    if whole := summary.round_ms.get("whole"):
        times = {kind.replace("_", " "): time for kind, time in summary.round_ms.items() if kind != "whole"}
        parts = ", ".join(f"{kind} {time:.2f}" for kind, time in times.items())
        yield f"a microbatch under way: {whole:.2f} ms on average; of these, over all processes: {parts}"
    for host, step in summary.clock_steps_ns.items():
        yield f"the wall clock of {host} was set by {step / 1e6:.1f} ms meanwhile; its middle was used"
    for host, skew in summary.clock_skews_ns.items():
        yield f"the wall clock of {host} is {skew / 1e6:+.2f} ms ahead, as messages tell; this was taken out"


def _shares(workers: Sequence[WorkerSummary]) -> Table:
    columns = ("microbatches", "busy", "bubble", "wire", "queue", "compute", "copies", "outbox", "publish")
    table = plain_table("process", *columns, title="where the time went; means per microbatch in ms", right=columns)
    for worker in workers:
        times = (
            *(worker.wire_ms, worker.queue_ms, worker.compute_ms),
            *(worker.copy_ms, worker.outbox_ms, worker.publish_ms),
        )
        shares = (_share(worker.busy), _share(worker.bubble))
        shown = [f"{time:.2f}" if worker.num_microbatches else "" for time in times]
        table.add_row(worker.name, str(worker.num_microbatches or ""), *shares, *shown)
    return table


def _host_work(workers: Sequence[WorkerSummary]) -> Table:
    names = {name for worker in workers for name in worker.host_us}
    known = [name for name in _HOST_ORDER if name in names]
    columns = [*known, *sorted(names - set(known)), "sum"]
    table = plain_table("process", *columns, title="CPU work per microbatch in µs", right=columns)
    for worker in workers:
        shown = [f"{worker.host_us[name]:.0f}" if name in worker.host_us else "" for name in columns[:-1]]
        table.add_row(worker.name, *shown, f"{sum(worker.host_us.values()):.0f}")
    return table


def _other_work(workers: Sequence[WorkerSummary]) -> Table:
    columns = ("times", "mean ms", "p95 ms", "share of time")
    table = plain_table("process", "what", *columns, title="work for sessions and requests", right=columns)
    for worker in workers:
        for name, done in worker.other.items():
            if name.startswith(_SHORT):
                continue
            figures = (str(done.num), f"{done.mean_ms:.2f}", f"{done.p95_ms:.2f}", f"{done.share:.1%}")
            table.add_row(worker.name, name, *figures)
    return table


def _share(value: float) -> str:
    return f"{value:.0%}" if value else ""
