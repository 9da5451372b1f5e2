"""Captions many pictures: a bounded number in flight, each written down as it finishes.

    paths ──► N workers, each: read, hash ── captioned before? ── yes ──► skip
                                 │ no
                                 └──► submit ──► wait ──► one line in the log

A worker that is stopped leaves its job running at the gateway. The same command, run again, submits it under the same
key and so finds the same job.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from broker_pipeline.client.caption_request import CaptionRequest, Picture, idempotency_key
from broker_pipeline.client.gateway_client import GatewayClient, Submitted
from broker_pipeline.errors import (
    Failure,
    GatewayUnreachableError,
    JobNotFoundError,
    MediaError,
    MediaTooLargeError,
    PipelineError,
)
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.tools.caption.log import CaptionLine, CaptionLog, Timings
from broker_pipeline.tools.caption.sampling_options import by_flag

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Larger files are not even read; the gateway's own limit is far below."""
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
        request: CaptionRequest,
        progress: Progress,
        *,
        num_in_flight: int,
        fail_fast: bool = False,
    ) -> None:
        """Prepare a run that asks `request` about every picture, `num_in_flight` at a time."""
        self._client = client
        self._log = log
        self._request = request
        self._progress = progress
        self._num_in_flight = num_in_flight
        self._fail_fast = fail_fast
        self._is_ending = False
        self._accepted: set[str] = set()
        self.summary = Summary(0)

    async def run(self, pictures: Sequence[Path]) -> Summary:
        """Caption all pictures and return what came of it.

        May be cancelled; `summary` then says how far it came. Raises `GatewayUnreachableError` when the gateway has
        been silent for the client's patience.
        """
        self.summary = Summary(len(pictures))
        remaining = iter(pictures)
        try:
            with raising_first_error():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._num_in_flight, len(pictures))):
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
            content, sha256 = await asyncio.to_thread(_read, path)
        except (OSError, MediaTooLargeError) as error:
            self._record(_unreadable(path, error, self._request))
            return
        picture = Picture(path, sha256)
        if self._log.is_captioned(picture, self._request):
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
            return self._line(picture, status="refused", error=by_flag(error.to_failure()))
        return self._line(picture, status=record.status, record=record)

    async def _run_job(self, picture: Picture, content: bytes) -> JobRecord:
        """Submit and wait; again where the gateway forgot the job, or only remembers how it failed long ago."""
        num_failures = self._log.num_failures(picture, self._request)
        error: JobNotFoundError | None = None
        for _ in range(_MAX_RESUBMISSIONS):
            submitted = await self._client.submit(
                content, self._request, idempotency_key(picture, self._request, num_failures)
            )
            if _is_old_failure(submitted):
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
        raise error or JobNotFoundError("the gateway only knows earlier, failed submissions of this picture")

    def _line(
        self, picture: Picture, *, status: str, record: JobRecord | None = None, error: Failure | None = None
    ) -> CaptionLine:
        result = record.result if record else None
        return CaptionLine(
            path=str(picture.path),
            sha256=picture.sha256,
            status=status,
            caption=result.text if result and status == "succeeded" else None,
            choices=result.choices if result and status == "succeeded" else (),
            finish_reason=result.finish_reason if result else None,
            usage=result.usage if result else None,
            timings=_timings(record) if record else None,
            error=error or _error_of(record),
            prompt=self._request.prompt,
            request=self._request.fingerprint,
            job_id=record.job_id if record else None,
            num_attempts=result.num_attempts if result else None,
        )

    def _record(self, line: CaptionLine) -> None:
        self._log.append(line)
        if line.is_success:
            self.summary.num_captioned += 1
        else:
            self.summary.failed.append(line)
            self._is_ending = self._is_ending or self._fail_fast
        self._progress.finished(line)


def _read(path: Path) -> tuple[bytes, str]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise MediaTooLargeError(f"the file has more than {MAX_FILE_BYTES} bytes")
    content = path.read_bytes()
    return content, hashlib.sha256(content).hexdigest()


def _unreadable(path: Path, error: OSError | MediaError, request: CaptionRequest) -> CaptionLine:
    failure = (
        error.to_failure()
        if isinstance(error, MediaError)
        else Failure("unreadable_file", error.strerror or str(error))
    )
    return CaptionLine(
        path=str(path), sha256="", status="refused", error=failure, prompt=request.prompt, request=request.fingerprint
    )


def _is_old_failure(submitted: Submitted) -> bool:
    """Whether the gateway answered with a job that failed in an earlier run.

    After a retry of our own it may be this run's job that failed meanwhile, which is then the answer.
    """
    return submitted.is_repeat and submitted.num_tries == 1 and submitted.record.status in {"failed", "cancelled"}


def _error_of(record: JobRecord | None) -> Failure | None:
    if record is None or record.status == "succeeded":
        return None
    if record.error is not None:
        return by_flag(record.error)
    return Failure("cancelled", "somebody cancelled the job") if record.status == "cancelled" else None


def _timings(record: JobRecord) -> Timings:
    started, finished = record.started_at, record.finished_at
    return Timings(
        queued_s=_seconds(record.created_at, started if started is not None else finished),
        running_s=_seconds(started, finished),
    )


def _seconds(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else round(max(0.0, stop - start), 4)


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
