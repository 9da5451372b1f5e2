"""What an overload did, as tables for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker_pipeline.process.terminal import plain_table
from trials.soak.overload import OverloadReport
from trials.soak.report import proof_table

_MIB = 1024 * 1024


def overload_tables(report: OverloadReport) -> RenderableType:
    """Return memory, proofs and a summary for a terminal."""
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(report.answers.items()))
    verdict = "PROVEN: refused what was too much, and memory stayed flat" if report.is_proven else "NOT PROVEN"
    summary = (
        f"the pipeline runs {report.pipeline_jobs_per_s:g} jobs/s; {report.submitted_per_s:g}/s were submitted for "
        f"{report.seconds:.0f} s: {answers}\n{verdict}"
    )
    return Group(_memory(report), Text(), proof_table(report.proofs), Text(), Text(summary))


def _memory(report: OverloadReport) -> Table:
    columns = ("middle third", "last third", "growth", "allowed")
    table = plain_table("process", *columns, title="memory, MiB", right=columns)
    for growth in report.memory:
        sizes = (growth.middle_bytes, growth.last_bytes, growth.growth_bytes, growth.allowed_bytes)
        table.add_row(growth.process, *(f"{size / _MIB:.1f}" for size in sizes), style="" if growth.is_flat else "red")
    return table
