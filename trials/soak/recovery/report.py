"""What a recovery drill measured: as JSON for machines, as a table for people."""

from __future__ import annotations

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker_pipeline.process.terminal import plain_table


class Seconds(msgspec.Struct, frozen=True, kw_only=True):
    """How long streams stood still, over all streams of all faults, and where the target was last."""

    num_faults: int
    num_streams: int
    p50: float
    p99: float
    worst: float


class RecoveryReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole drill. Of servers, seconds are those after their return."""

    seconds: float
    num_processors: int
    load_average: float
    """Of the last minute before the drill: what else the machine does."""
    calm_s: float
    num_false_alarms: int
    """Workers suspended and tenures begun while nothing had happened, under the same load."""
    components: dict[str, Seconds]
    """By component, over all kinds of faults."""
    kinds: dict[str, Seconds]
    """By component and kind, as in `stage kill`."""
    problems: tuple[str, ...] = ()


def seconds_of(faults: list[list[float]]) -> Seconds:
    """Sum up faults, of each of which the seconds of its streams are given."""
    ordered = sorted(seconds for streams in faults for seconds in streams) or [0.0]
    last = len(ordered) - 1
    p50, p99, worst = (round(ordered[round(share * last)], 3) for share in (0.5, 0.99, 1.0))
    return Seconds(num_faults=len(faults), num_streams=sum(map(len, faults)), p50=p50, p99=p99, worst=worst)


def recovery_tables(report: RecoveryReport) -> RenderableType:
    """Return the table, and what to know of the machine."""
    said = (
        f"{report.num_false_alarms} false alarms in {report.calm_s:.0f} s without faults; all in "
        f"{report.seconds:.0f} s on {report.num_processors} processors, load average before {report.load_average:.1f}"
    )
    return Group(_table(report), Text(), Text("\n".join((said, *report.problems))))


def _table(report: RecoveryReport) -> Table:
    columns = ("fault", "faults", "streams", "p50 s", "p99 s", "worst s")
    table = plain_table(*columns, title="how long streams stood still", right={*columns} - {"fault"})
    for name, found in {**report.components, **report.kinds}.items():
        numbers = (
            str(found.num_faults),
            str(found.num_streams),
            *(f"{s:.2f}" for s in (found.p50, found.p99, found.worst)),
        )
        table.add_row(name, *numbers)
    return table
