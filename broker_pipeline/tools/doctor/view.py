"""Findings as a person reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker_pipeline.tools.doctor.finding import Finding

_STYLES = {"ok": "green", "unseen": "cyan", "warn": "yellow", "fail": "bold red"}


def render_findings(findings: Sequence[Finding]) -> RenderableType:
    """Return a row for each finding, what to do below it, and a line that sums up."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        found = Text(finding.found)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}", style="" if finding.level == "fail" else "dim")
        table.add_row(finding.check, Text(finding.level, style=_STYLES[finding.level]), found)
    return Group(table, Text(""), Text(summary(findings)))


def summary(findings: Sequence[Finding]) -> str:
    """Count what has to be done."""
    counts = Counter(finding.level for finding in findings)
    if counts["ok"] == len(findings):
        return "all is well"
    unseen = f", {counts['unseen']} not looked at" * bool(counts["unseen"])
    return f"{counts['fail']} to mend, {counts['warn']} to look at, {counts['ok']} are well{unseen}"
