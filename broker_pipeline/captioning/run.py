"""Captions many pictures: a bounded number in flight, each written down as it finishes.

    paths ──► N workers, each: read, hash ── captioned before? ── yes ──► skip
                                 │ no
                                 └──► submit ──► wait ──► one line in the log

A worker that is stopped leaves its job running at the gateway. The same command, run again, submits it under the same
key and so finds the same job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.line_maker import LineMaker
from broker_pipeline.captioning.log import CaptionLog
from broker_pipeline.captioning.sources.picture_files import FoundPictures
from broker_pipeline.captioning.sources.reading import read_picture
from broker_pipeline.client.caption_request import CaptionRequest, Picture, idempotency_key
from broker_pipeline.client.gateway_client import GatewayClient, Submitted
from broker_pipeline.daemon_thread import in_daemon_thread
from broker_pipeline.errors import Failure, GatewayUnreachableError, JobNotFoundError, MediaError, PipelineError
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.messages.jobs import JobRecord

_MAX_READS = 32
_MAX_RESUBMISSIONS = 5


class Progress(Protocol):
    """Is told what happens, to show it."""

    def skipped(self) -> None:
        """Take note of a picture that had its caption already."""

    def finished(self, line: CaptionLine) -> None:
        """Take note of a picture that was captioned, or failed."""


@dataclass(slots=True)
class Summary:
    """What came of a run."""

    num_pictures: int
    num_skipped: int = 0
    num_captioned: int = 0
    failed: list[CaptionLine] = field(default_factory=list)
    num_left_running: int = 0
    """Jobs that the gateway goes on with although nobody waits here any more."""

    @property
    def num_untouched(self) -> int:
        """Pictures that the run did not get to."""
        return self.num_pictures - self.num_skipped - self.num_captioned - len(self.failed)


class CaptionRun:
    """One run over a list of pictures."""

    def __init__(
        self,
        client: GatewayClient,
        log: CaptionLog,
        lines: LineMaker,
        progress: Progress,
        *,
        num_in_flight: int,
        fail_fast: bool = False,
    ) -> None:
        """Prepare a run that asks what `lines` tells of about every picture, `num_in_flight` at a time."""
        self._client = client
        self._log = log
        self._lines = lines
        self._request: CaptionRequest = lines.request
        self._progress = progress
        self._num_in_flight = num_in_flight
        self._fail_fast = fail_fast
        self._is_ending = False
        self._reads = asyncio.Semaphore(_MAX_READS)
        self._accepted: set[str] = set()
        self.summary = Summary(0)

    async def run(self, found: FoundPictures) -> Summary:
        """Caption all pictures and return what came of it.

        May be cancelled; `summary` then says how far it came. Raises `GatewayUnreachableError` when the gateway has
        been silent for the client's patience, `OutputError` when a line cannot be written.
        """
        self.summary = Summary(len(found.pictures) + len(found.unreadable))
        for folder, reason in found.unreadable.items():
            self._record(self._lines.unreadable(folder, Failure("unreadable_file", reason)))
        remaining = iter(found.pictures)
        try:
            with raising_first_error():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._num_in_flight, len(found.pictures))):
                        group.create_task(self._work(remaining))
        finally:
            self.summary.num_left_running = len(self._accepted)
        return self.summary

    async def _work(self, remaining: Iterator[Path]) -> None:
        for path in remaining:
            if self._is_ending:
                return
            await self._do(path)

    async def _do(self, path: Path) -> None:
        try:
            async with self._reads:
                content, sha256 = await in_daemon_thread(read_picture, path)
        except MediaError as error:
            self._record(self._lines.unreadable(path, error.to_failure()))
            return
        picture = Picture(path, sha256)
        if not self._request.occasion and self._log.is_captioned(picture, self._request):
            self.summary.num_skipped += 1
            self._progress.skipped()
            return
        self._record(await self._caption(picture, content))

    async def _caption(self, picture: Picture, content: bytes) -> CaptionLine:
        try:
            record = await self._run_job(picture, content)
        except GatewayUnreachableError:
            raise
        except PipelineError as error:
            return self._lines.refused(picture, error.to_failure())
        return self._lines.ended(picture, record)

    async def _run_job(self, picture: Picture, content: bytes) -> JobRecord:
        """Submit and wait; again where the gateway forgot the job, or only remembers one of no use."""
        num_failures = self._log.num_failures(picture, self._request)
        error: JobNotFoundError | None = None
        for _ in range(_MAX_RESUBMISSIONS):
            submitted = await self._client.submit(
                content, self._request, idempotency_key(picture, self._request, num_failures)
            )
            if _is_old_failure(submitted) or self._is_of_another_model(submitted):
                num_failures += 1
                continue
            self._accepted.add(submitted.record.job_id)
            try:
                record = await self._client.wait(submitted.record.job_id)
            except JobNotFoundError as lost:
                error = lost
            else:
                return record
            finally:
                if not _is_cancelling():
                    self._accepted.discard(submitted.record.job_id)
        raise error or JobNotFoundError("the gateway only knows earlier submissions of this picture, of no use")

    def _is_of_another_model(self, submitted: Submitted) -> bool:
        """Whether the gateway answered with a job that a model finished which had come into the asked one's place."""
        result = submitted.record.result
        model = result.fingerprint if submitted.is_repeat and result else None
        return model is not None and model != self._request.model

    def _record(self, line: CaptionLine) -> None:
        self._log.append(line)
        if line.is_success:
            self.summary.num_captioned += 1
        else:
            self.summary.failed.append(line)
            self._is_ending = self._is_ending or self._fail_fast
        self._progress.finished(line)


def _is_old_failure(submitted: Submitted) -> bool:
    """Whether the gateway answered with a job that failed in an earlier run.

    After a retry of our own it may be this run's job that failed meanwhile, which is then the answer.
    """
    return submitted.is_repeat and submitted.num_tries == 1 and submitted.record.status in {"failed", "cancelled"}


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
