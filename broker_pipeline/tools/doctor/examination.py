"""Runs checks at the same time, each within its time, so that none holds up another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from broker_pipeline.errors import PipelineError
from broker_pipeline.tools.doctor.finding import Finding, fail

Findings = Sequence[Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """How one thing is looked at, and what is said where that ends with an error or takes too long."""

    run: Callable[[], Awaitable[Findings]]
    remedy: str
    timeout_s: float | None
    """None for as long as it takes."""


async def examine(checks: Mapping[str, Check]) -> list[Finding]:
    """Run all checks; return what they found, in the checks' order."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_run(name, check), name=f"doctor {name}") for name, check in checks.items()]
    return [finding for task in running for finding in task.result()]


async def _run(name: str, check: Check) -> Findings:
    try:
        async with asyncio.timeout(check.timeout_s):
            return await check.run()
    except TimeoutError:
        return [fail(name, f"no answer within {check.timeout_s:g} s", check.remedy)]
    except PipelineError as error:
        return [fail(name, error.message, check.remedy)]
