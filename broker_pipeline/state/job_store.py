"""Jobs and their tokens in Redis: what clients see, and what a new attempt resumes from.

    create ──► queued ──begin_attempt──► running ──finish──► succeeded | failed | cancelled ──(result_ttl_s)──► gone
                │  ▲                       │  ▲                             │
                │  │                       └──┘ commit, begin_attempt (a later attempt voids the earlier ones)
                │  └───────────────────────────────────────────── retry ────┘ (see `failed_jobs`)
                └──request_cancel──► cancelled

Every method is one script or one read, so it is atomic; every method may be repeated, so a caller that got a
`StateError` can call again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import Failure, InvalidRequestError
from broker_pipeline.messages.jobs import JobRecord, JobResult, JobSpec, JobStatus, TokenEntry
from broker_pipeline.state import redis_scripts
from broker_pipeline.state.job_records import (
    DEFAULT_RESULT_TTL_S,
    RECORD_FIELDS,
    JobScripts,
    is_known,
    job_not_found,
    job_record,
    spec_args,
)
from broker_pipeline.state.redis_client import RedisClient, state_errors

TokenEntries: TypeAlias = list[TokenEntry]

_MAX_PAGE = 1000
_encode = msgspec.json.Encoder().encode
_decode_token = msgspec.json.Decoder(TokenEntry).decode
_decode_spec = msgspec.json.Decoder(JobSpec).decode


@dataclass(frozen=True, slots=True)
class Attempt:
    """A number to write with, and the tokens that earlier attempts have committed.

    With `is_finished` there is nothing to do and the number must not be used; `has_failed` says that the job ended as
    failed and may be sent again. With `is_cancelled` all that is left is to `finish` the job as cancelled under this
    number.
    """

    number: int
    tokens: TokenEntries
    is_cancelled: bool = False
    is_finished: bool = False
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class TokenCommit:
    """New tokens of one job; `start` is the number of tokens committed before them."""

    job_id: str
    attempt: int
    start: int
    entries: tuple[TokenEntry, ...]


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first. `next` is the `before` of the following page, `None` at the end."""

    records: list[JobRecord]
    next: str | None


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that are queued and running now; jobs that have ended since Redis began."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class JobStore:
    """The jobs of one namespace."""

    def __init__(self, redis: RedisClient, namespace: str, *, result_ttl_s: int = DEFAULT_RESULT_TTL_S) -> None:
        """Finished jobs are kept for `result_ttl_s` seconds."""
        self._redis = redis
        self._namespace = namespace
        self._run = JobScripts(redis, namespace, result_ttl_s).run

    async def create(self, spec: JobSpec, idempotency_key: str | None = None) -> tuple[JobRecord, bool]:
        """Record a new job as queued.

        Returns its record and True; or, when a job submitted before with this idempotency key is still known, that
        one's record and False. Repeating the call with the same `job_id` returns True again.
        """
        if idempotency_key is None:
            key = redis_keys.job(self._namespace, spec.job_id)
        else:
            key = redis_keys.idempotency(self._namespace, idempotency_key)
        args = [*spec_args(spec), "0" if idempotency_key is None else "1"]
        job_id, is_this, fields = await self._run(
            redis_scripts.CREATE_JOB, args, f"cannot record job {spec.job_id}", extra_keys=[key]
        )
        return job_record(job_id.decode(), fields), bool(is_this)

    async def discard(self, job_id: str) -> None:
        """Forget a job that could not be queued; one that has begun, or is unknown, is left alone."""
        await self._run(redis_scripts.DISCARD_JOB, [job_id], f"cannot discard job {job_id}")

    async def get(self, job_id: str) -> JobRecord:
        """Return a job; raises `JobNotFoundError`."""
        with state_errors(f"cannot read job {job_id}"):
            fields: list[Any] = await self._redis.hmget(redis_keys.job(self._namespace, job_id), RECORD_FIELDS)
        if not is_known(fields[0]):
            raise job_not_found(job_id)
        return job_record(job_id, fields)

    async def spec(self, job_id: str) -> JobSpec:
        """Return what was submitted; raises `JobNotFoundError`."""
        with state_errors(f"cannot read job {job_id}"):
            spec = await self._redis.hget(redis_keys.job(self._namespace, job_id), "spec")
            if spec is not None:
                return _decode_spec(spec)
        raise job_not_found(job_id)

    async def tokens(self, job_id: str, start: int = 0) -> TokenEntries:
        """Return the committed tokens from number `start` on; raises `JobNotFoundError`."""
        with state_errors(f"cannot read the tokens of job {job_id}"):
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hget(redis_keys.job(self._namespace, job_id), "status")
                pipeline.lrange(redis_keys.job_tokens(self._namespace, job_id), start, -1)
                status, entries = await pipeline.execute()
            if is_known(status):
                return [_decode_token(entry) for entry in entries]
        raise job_not_found(job_id)

    async def begin_attempt(self, spec: JobSpec) -> Attempt:
        """Take the next attempt of a job and void the earlier ones; a job that Redis lost is recorded again.

        So is a request to run it again that Redis lost, and a message of an earlier sending of the job is finished.
        """
        action = f"cannot begin an attempt of job {spec.job_id}"
        number, cancelled, finished, failed, entries = await self._run(
            redis_scripts.BEGIN_ATTEMPT, spec_args(spec), action
        )
        with state_errors(action):
            tokens = [_decode_token(entry) for entry in entries]
        return Attempt(number, tokens, bool(cancelled), bool(finished), bool(failed))

    async def commit(self, commits: Sequence[TokenCommit]) -> list[bool]:
        """Append tokens of many jobs in one round trip.

        Returns per job whether its tokens are in place. False means that they do not belong: a later attempt exists,
        the job has ended or is unknown, or `start` is not the number of tokens that it has.
        """
        if not commits:
            return []
        args = [_lines(item) for item in commits]
        done = await self._run(redis_scripts.COMMIT_TOKENS, args, f"cannot commit the tokens of {len(commits)} jobs")
        return [bool(flag) for flag in done]

    async def finish(
        self,
        job_id: str,
        attempt: int,
        status: Literal["succeeded", "failed", "cancelled"],
        result: JobResult | None = None,
        error: Failure | None = None,
        tokens: TokenCommit | None = None,
    ) -> bool:
        """End a job, once, after committing its last `tokens`.

        Returns True when the job has ended as this call says; a repeat after a lost answer is True as well. False
        means that it changed nothing: the job had ended otherwise, a later attempt exists, its tokens do not belong,
        or the job is unknown.
        """
        encoded = ["" if value is None else _encode(value) for value in (result, error)]
        encoded.append("" if tokens is None else _lines(tokens))
        done = await self._run(
            redis_scripts.FINISH_JOB, [job_id, attempt, status, *encoded], f"cannot finish job {job_id}"
        )
        return bool(done)

    async def request_cancel(self, job_id: str) -> JobRecord:
        """Ask for a job's end: a queued one is cancelled now, a running one is flagged, a finished one stays.

        Raises `JobNotFoundError`.
        """
        if not await self._run(redis_scripts.CANCEL_JOB, [job_id], f"cannot cancel job {job_id}"):
            raise job_not_found(job_id)
        return await self.get(job_id)

    async def is_cancelled(self, job_id: str) -> bool:
        """Whether somebody has asked for the job's end."""
        with state_errors(f"cannot read job {job_id}"):
            status, flag = await self._redis.hmget(redis_keys.job(self._namespace, job_id), ("status", "cancel"))
        return flag is not None or status == b"cancelled"

    async def counts(self) -> JobCounts:
        """Return the number of jobs by status."""
        fields = JobCounts.__struct_fields__
        with state_errors("cannot count jobs"):
            values = await self._redis.hmget(redis_keys.counts(self._namespace), fields)
            return JobCounts(**{field: int(value or 0) for field, value in zip(fields, values, strict=True)})

    async def sweep(self) -> int:
        """Forget some finished jobs whose time has come and return how many. `create` and `finish` do so as well."""
        return int(await self._run(redis_scripts.SWEEP_JOBS, [], "cannot sweep finished jobs"))

    async def _ids_before(self, key: str, cursor: _Cursor | None, limit: int) -> list[_Cursor]:
        """Return (created_at, id) pairs in falling order, below the cursor; equal times are ordered by id."""
        rows: list[tuple[bytes, float]]
        found: list[_Cursor] = []
        offset, top = 0, "+inf" if cursor is None else repr(cursor[0])
        while len(found) < limit:
            rows = await self._redis.zrevrangebyscore(key, top, "-inf", start=offset, num=limit, withscores=True)  # type: ignore[assignment]
            pairs = [(float(score), member.decode()) for member, score in rows]
            found += [pair for pair in pairs if cursor is None or pair < cursor]
            if len(rows) < limit:
                break
            offset += limit
        return found[:limit]

    async def _records(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Return the records that still exist."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(redis_keys.job(self._namespace, job_id), RECORD_FIELDS)
            rows = await pipeline.execute()
        return [job_record(job_id, row) for job_id, row in zip(job_ids, rows, strict=True) if is_known(row[0])]

    async def list(self, before: str | None = None, limit: int = 50, status: JobStatus | None = None) -> JobPage:
        """Return up to `limit` jobs, newest first, that come after the cursor `before` (a page's `next`)."""
        if not 1 <= limit <= _MAX_PAGE:
            raise InvalidRequestError(f"limit must be between 1 and {_MAX_PAGE}", field="limit")
        key = redis_keys.jobs_with_status(self._namespace, status) if status else redis_keys.jobs(self._namespace)
        cursor = None if before is None else _parse_cursor(before)
        with state_errors("cannot list jobs"):
            found = await self._ids_before(key, cursor, limit + 1)
            records = await self._records([job_id for _, job_id in found[:limit]])
        return JobPage(records, _format_cursor(found[limit - 1]) if len(found) > limit else None)


def _lines(commit: TokenCommit) -> bytes:
    """Return a job's tokens as one argument: redis-py spends as much on an argument as this on several tokens."""
    head = b"%b %d %d" % (commit.job_id.encode(), commit.attempt, commit.start)
    return b"\n".join([head, *map(_encode, commit.entries)])


_Cursor: TypeAlias = tuple[float, str]


def _format_cursor(cursor: _Cursor) -> str:
    return f"{cursor[0]!r}_{cursor[1]}"


def _parse_cursor(text: str) -> _Cursor:
    created_at, _, job_id = text.partition("_")
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(created_at)):
            return seconds, job_id
    raise InvalidRequestError("before must be the `next` of an earlier page", field="before")
