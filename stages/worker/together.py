"""Several things at once, or the first error."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from broker_pipeline.exit_codes import first_pipeline_error

T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at once and return their results in order; when one fails the others are cancelled.

    Raises:
        PipelineError: the first that one of them raised, not wrapped in a group.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in work]
    except BaseExceptionGroup as group:
        error = first_pipeline_error(group)
        if error is None:
            raise
        raise error from group
    return [task.result() for task in running]
