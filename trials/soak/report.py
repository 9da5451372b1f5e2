"""What a soak found: as JSON for machines, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker_pipeline.process.terminal import plain_table
from trials.soak.proof.client import ClientCounts
from trials.soak.proof.proofs import Proof


class FaultReport(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. Times in seconds; `at_s` from the first job on, the others from the fault on."""

    number: int
    at_s: float
    target: str
    kind: str
    away_s: float
    """How long it was stopped or cut off; 0 for other kinds."""
    back_s: float | None
    """Until the target was ready again."""
    num_under_way: int
    """Jobs that were in the middle of their output."""
    first_token_s: float | None
    """Until the first of them went on."""
    all_moving_s: float | None
    """Until the last of them had gone on (other faults may have come meanwhile)."""
    problem: str | None = None


class SoakReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run."""

    is_proven: bool
    seed: int
    num_jobs: int
    num_stages: int
    kinds: tuple[str, ...]
    seconds: float
    num_tokens: int
    num_retried: int
    """Jobs that took more than one attempt."""
    most_attempts: int
    client: ClientCounts
    restarts: dict[str, int]
    """By component: how often it was started again."""
    faults: tuple[FaultReport, ...]
    proofs: tuple[Proof, ...]
    job_seconds: dict[str, float]
    """From submission to the end: median, 99 of 100, longest."""


def percentiles(values: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum, by nearest rank; nothing for no values."""
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "p50": round(ordered[round(0.5 * last)], 3),
        "p99": round(ordered[round(0.99 * last)], 3),
        "max": round(ordered[-1], 3),
    }


def soak_tables(report: SoakReport) -> RenderableType:
    """Return the faults, the proofs and a summary for a terminal."""
    return Group(_faults(report), Text(), proof_table(report.proofs), Text(), Text(summary(report)))


def summary(report: SoakReport) -> str:
    """Return the outcome in a few lines."""
    verdict = "PROVEN: nothing lost, doubled or spoiled" if report.is_proven else "NOT PROVEN"
    times = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report.job_seconds.items())
    return (
        f"{report.num_jobs} jobs, {report.num_tokens} tokens, {len(report.faults)} faults in {report.seconds:.0f} s "
        f"(seed {report.seed}); {report.num_retried} jobs took more than one attempt, at most {report.most_attempts}\n"
        f"seconds from submission to result: {times or 'none'}\n{verdict}"
    )


def _faults(report: SoakReport) -> Table:
    columns = ("#", "at s", "target", "kind", "away s", "back s", "jobs under way", "first token s", "all moving s")
    table = plain_table(*columns, title="faults", right={*columns} - {"target", "kind"})
    for fault in report.faults:
        table.add_row(
            str(fault.number),
            f"{fault.at_s:.1f}",
            fault.target,
            fault.kind,
            f"{fault.away_s:.1f}" if fault.away_s else "",
            _seconds(fault.back_s),
            str(fault.num_under_way),
            _seconds(fault.first_token_s),
            _seconds(fault.all_moving_s),
        )
    return table


def proof_table(proofs: Iterable[Proof]) -> Table:
    """Return one row per statement."""
    table = plain_table("", "statement", "checked", title="proofs", right={"checked"}, no_wrap=False)
    for proof in proofs:
        mark = Text("holds", style="green") if proof.holds else Text("FAILS", style="bold red")
        table.add_row(mark, Text("\n".join((proof.statement, *proof.examples))), str(proof.num_checked))
    return table


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"
