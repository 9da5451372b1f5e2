"""Findings in a form that tests compare."""

from __future__ import annotations

from collections.abc import Sequence

from broker_pipeline.tools.doctor.finding import Finding


def by_check(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Return the worst finding of each check; whatever is not well says what to do."""
    order = ("ok", "unseen", "warn", "fail")
    for finding in findings:
        assert bool(finding.remedy) == (finding.level != "ok"), finding
    return {finding.check: finding for finding in sorted(findings, key=lambda each: order.index(each.level))}


def levels(findings: Sequence[Finding]) -> dict[str, str]:
    """Return the worst level of each check."""
    return {check: finding.level for check, finding in by_check(findings).items()}
