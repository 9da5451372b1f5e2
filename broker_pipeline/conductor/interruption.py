"""Ends what runs inside of a context, from outside, with a reason: as `asyncio.timeout` does when time is up."""

from __future__ import annotations

import asyncio
from types import TracebackType

from broker_pipeline.errors import PipelineError


class Interruption:
    """A context whose work is cancelled by `interrupt`, and which then raises the reason; one task at a time is inside.

    It needs no task of its own, so that every job can have one at little cost.
    """

    def __init__(self) -> None:
        self._reason: PipelineError | None = None
        self._task: asyncio.Task[object] | None = None
        self._num_before = 0

    def interrupt(self, reason: PipelineError) -> None:
        """End what is inside, and whatever enters later; only the first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    def __enter__(self) -> None:
        if self._reason is not None:
            raise self._reason
        self._task = asyncio.current_task()
        assert self._task is not None, "only tasks can be interrupted"
        self._num_before = self._task.cancelling()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        task, self._task = self._task, None
        assert task is not None
        if self._reason is None:
            return
        is_only_ours = task.uncancel() <= self._num_before
        if is_only_ours and kind is asyncio.CancelledError:
            raise self._reason from error
