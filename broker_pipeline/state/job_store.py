"""Jobs and their tokens in Redis: what clients see, and what a new attempt resumes from.

    create ──► queued ──begin_attempt──► running ──finish──► succeeded | failed | cancelled ──(result_ttl_s)──► gone
                │  ▲                       │  ▲                             │
                │  │                       └──┘ commit, begin_attempt (a later attempt voids the earlier ones)
                │  └───────────────────────────────────────────── retry ────┘ (see `failed_jobs`)
                └──request_cancel──► cancelled

A job's id stands in `jobs` as long as it is known, in `jobs:{its status}`, and in `expiry` once it has ended.

Every method is one script or one read, so it is atomic; every method may be repeated, so a caller that got a
`StateError` can call again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import msgspec
from redis.exceptions import RedisError

from broker_pipeline import redis_keys
from broker_pipeline.errors import Failure, GarbledStateError, LeaseLostError
from broker_pipeline.messages.jobs import JobRecord, JobResult, JobSpec, JobStatus, TokenEntry
from broker_pipeline.state.held_jobs import Hold, read_hold
from broker_pipeline.state.job_pages import JobPage, job_fields, page_of_records
from broker_pipeline.state.job_records import (
    DEFAULT_RESULT_TTL_S,
    RECORD_FIELDS,
    as_json,
    is_known,
    job_not_found,
    job_record,
    job_scripts,
    spec_args,
)
from broker_pipeline.state.lease import Fence
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.unreadable_rows import UnreadableRows

TokenEntries: TypeAlias = list[TokenEntry]

_MAX_ATTEMPT = 2**40

_encode_lines = msgspec.json.Encoder().encode_lines
_decode_token = msgspec.json.Decoder(TokenEntry).decode
_decode_spec = msgspec.json.Decoder(JobSpec).decode


@dataclass(frozen=True, slots=True)
class Attempt:
    """A number to write with, and the tokens that earlier attempts have committed.

    With `is_finished` there is nothing to do and the number must not be used; `has_failed` says that the job ended as
    failed and may be sent again. With `is_cancelled` all that is left is to `finish` the job as cancelled under this
    number. `other_model` is the fingerprint of another model that had begun the job ("" where nobody knows): `tokens`
    are that one's and not to be continued, or there are none, since they were dropped.
    """

    number: int
    tokens: TokenEntries
    is_cancelled: bool = False
    is_finished: bool = False
    has_failed: bool = False
    other_model: str | None = None

    @property
    def has_foreign_tokens(self) -> bool:
        """Whether its tokens are another model's."""
        return self.other_model is not None and bool(self.tokens)


@dataclass(frozen=True, slots=True)
class TokenCommit:
    """New tokens of one job; `start` is the number of tokens committed before them."""

    job_id: str
    attempt: int
    start: int
    entries: tuple[TokenEntry, ...]


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that are queued and running now; jobs that have ended since Redis began (or since its counts were lost)."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class JobStore:
    """The jobs of one namespace."""

    def __init__(self, redis: RedisClient, namespace: str, *, result_ttl_s: int = DEFAULT_RESULT_TTL_S) -> None:
        """Keep finished jobs for `result_ttl_s` seconds."""
        self._redis = redis
        self._namespace = namespace
        self._run = job_scripts(redis, namespace, result_ttl_s)
        self._unreadable = UnreadableRows("job_unreadable")

    async def create(self, spec: JobSpec, idempotency_key: str | None = None) -> tuple[JobRecord, bool]:
        """Record a new job as queued.

        Returns its record and True; or, when a job submitted before with this idempotency key is still known, that
        one's record and False. Repeating the call with the same `job_id` returns True again.
        """
        args = {**spec_args(spec), "record_fields": RECORD_FIELDS}
        if idempotency_key is not None:
            args["idempotency_key"] = redis_keys.idempotency(self._namespace, idempotency_key, spec.tenant)
        job_id, is_this, fields = await self._run("create", args, f"cannot record job {spec.job_id}")
        return job_record(job_id.decode(), fields), bool(is_this)

    async def discard(self, job_id: str) -> None:
        """Forget a job that could not be queued; one that has begun, or is unknown, is left alone."""
        await self._run("discard", {"job_id": job_id}, f"cannot discard job {job_id}")

    async def jobs_of(self, idempotency_keys: Sequence[str], tenant: str = "") -> list[str | None]:
        """Return the ids of the jobs that were submitted with these keys; None where one is not known (any more)."""
        if not idempotency_keys:
            return []
        with state_errors("cannot look for jobs by their keys"):
            keys = [redis_keys.idempotency(self._namespace, key, tenant) for key in idempotency_keys]
            job_ids: list[bytes | None] = await self._redis.mget(keys)  # type: ignore[assignment]
            return [None if job_id is None else job_id.decode() for job_id in job_ids]

    async def forget_ended(self, job_ids: Sequence[str]) -> None:
        """Forget jobs whose results are kept elsewhere; those that have not ended are left alone."""
        await self._run("forget_ended", {"job_ids": job_ids}, "cannot forget jobs")

    async def get(self, job_id: str) -> JobRecord:
        """Return a job; raises `JobNotFoundError`."""
        with state_errors(f"cannot read job {job_id}"):
            fields: list[Any] = await self._redis.hmget(redis_keys.job(self._namespace, job_id), RECORD_FIELDS)
        if not is_known(fields[0]):
            raise job_not_found(job_id)
        return job_record(job_id, fields)

    async def get_many(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Return those of some jobs that are known and can be read, in one round trip."""
        with state_errors(f"cannot read {len(job_ids)} jobs"):
            rows = await job_fields(self._redis, self._namespace, job_ids, RECORD_FIELDS)
        records = []
        for job_id, row in zip(job_ids, rows, strict=True):
            with suppress(GarbledStateError):
                if not isinstance(row, RedisError) and is_known(row[0]):
                    records.append(job_record(job_id, row))
        return records

    async def tenant(self, job_id: str) -> str | None:
        """Return whose job it is: empty where nobody is known, None where there is no such job."""
        with state_errors(f"cannot read job {job_id}"):
            fields: list[Any] = await self._redis.hmget(redis_keys.job(self._namespace, job_id), ("status", "tenant"))
            return (fields[1] or b"").decode() if is_known(fields[0]) else None

    async def spec(self, job_id: str) -> JobSpec:
        """Return what was submitted; raises `JobNotFoundError`."""
        with state_errors(f"cannot read job {job_id}"):
            spec = await self._redis.hget(redis_keys.job(self._namespace, job_id), "spec")
            if spec is not None:
                return _decode_spec(spec)
        raise job_not_found(job_id)

    async def tokens(self, job_id: str, start: int = 0) -> TokenEntries:
        """Return the committed tokens from number `start` on; raises `JobNotFoundError`."""
        _, tokens = await self.get_with_tokens(job_id, start)
        return tokens

    async def get_with_tokens(self, job_id: str, start: int) -> tuple[JobRecord, TokenEntries]:
        """Return a job and its committed tokens from number `start` on, of one moment; raises `JobNotFoundError`."""
        with state_errors(f"cannot read job {job_id} and its tokens"):
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hmget(redis_keys.job(self._namespace, job_id), RECORD_FIELDS)
                pipeline.lrange(redis_keys.job_tokens(self._namespace, job_id), start, -1)
                fields, entries = await pipeline.execute()
            if is_known(fields[0]):
                return job_record(job_id, fields), [_decode_token(entry) for entry in entries]
        raise job_not_found(job_id)

    async def begin_attempt(
        self,
        spec: JobSpec,
        fingerprint: str,
        *,
        restarts: bool = True,
        hold: Hold | None = None,
        fence: Fence | None = None,
    ) -> Attempt:
        """Take the next attempt of a job and void the earlier ones; a job that Redis lost is recorded again.

        So is a request to run it again that Redis lost, and a message of an earlier sending of the job is finished.
        The tokens to come are of the model `fingerprint`. Those of another one are dropped if the job `restarts`.
        `hold` says who has the job from now on.

        Raises:
            LeaseLostError: the lease of `fence` is another's; nothing was written.
        """
        action = f"cannot begin an attempt of job {spec.job_id}"
        args = {**spec_args(spec), "fingerprint": fingerprint, "restarts": restarts}
        args["held"] = as_json(hold) if hold else ""
        if fence is not None:
            args |= {"lease": fence.key, "instance": fence.instance}
        number, *answer = await self._run("begin_attempt", args, action)
        if not answer:
            raise LeaseLostError(f"{action}: another conductor has the lease")
        cancelled, finished, failed, entries, *other = answer
        with state_errors(action):
            tokens = [_decode_token(entry) for entry in entries]
            if number > _MAX_ATTEMPT:
                raise ValueError(f"{number} attempts are more than anybody makes")
            other_model = other[0].decode() if other and other[0] is not None else None
        return Attempt(number, tokens, bool(cancelled), bool(finished), bool(failed), other_model)

    async def hold(self, job_id: str) -> Hold | None:
        """Return who has a running job, or had it when it died; None where nobody says so."""
        with state_errors(f"cannot look who has job {job_id}"):
            status, held = await self._redis.hmget(redis_keys.job(self._namespace, job_id), ("status", "held"))
        return read_hold(held) if status == b"running" and held else None

    async def has_later_attempt(self, job_id: str, attempt: int) -> bool:
        """Return whether a later attempt of a job is under way: somebody else has begun it, and voided this one."""
        with state_errors(f"cannot look at the attempts of job {job_id}"):
            status, number = await self._redis.hmget(redis_keys.job(self._namespace, job_id), ("status", "attempt"))
            return status == b"running" and int(number or 0) > attempt

    async def count_other_models(self, fingerprint: str) -> int:
        """Return how many running jobs have tokens of another model than this one."""
        return int(await self._run("count_other_models", {"fingerprint": fingerprint}, "cannot look through jobs"))

    async def commit(self, commits: Sequence[TokenCommit]) -> list[bool]:
        """Append tokens of many jobs in one round trip.

        Returns per job whether its tokens are in place. False means that they do not belong: a later attempt exists,
        the job has ended or is unknown, or `start` is not the number of tokens that it has.
        """
        if not commits:
            return []
        action = f"cannot commit the tokens of {len(commits)} jobs"
        done = await self._run("commit", {"commits": _heads(commits)}, action, _tokens(commits))
        return [bool(flag) for flag in done]

    async def finish(
        self,
        job_id: str,
        attempt: int,
        status: Literal["succeeded", "failed", "cancelled"],
        result: JobResult | None = None,
        error: Failure | None = None,
        tokens: TokenCommit | None = None,
        num_tokens: int | None = None,
    ) -> bool:
        """End a job, once, after committing its last `tokens`; with `num_tokens`, only if it has so many then.

        Returns True when the job has ended as this call says; a repeat after a lost answer is True as well. False
        means that it changed nothing: the job had ended otherwise, a later attempt exists, its tokens do not belong
        or are not all there, or the job is unknown.
        """
        commits = [] if tokens is None else [tokens]
        args = {"job_id": job_id, "attempt": attempt, "status": status, "commits": _heads(commits)}
        args |= {"num_tokens": num_tokens} if num_tokens is not None else {}
        args |= {name: as_json(value) for name, value in (("result", result), ("error", error)) if value is not None}
        done = await self._run("finish", args, f"cannot finish job {job_id}", _tokens(commits))
        return bool(done)

    async def request_cancel(self, job_id: str) -> JobRecord:
        """Ask for a job's end: a queued one is cancelled now, a running one is flagged, a finished one stays.

        Raises `JobNotFoundError`.
        """
        if not await self._run("request_cancel", {"job_id": job_id}, f"cannot cancel job {job_id}"):
            raise job_not_found(job_id)
        return await self.get(job_id)

    async def cancelled(self, job_ids: Sequence[str]) -> list[str]:
        """Return those of some jobs whose end somebody has asked for, in one round trip."""
        flagged = zip(job_ids, await self._statuses(job_ids), strict=True)
        return [job_id for job_id, (status, flag) in flagged if flag is not None or status == b"cancelled"]

    async def ended(self, job_ids: Sequence[str]) -> list[str]:
        """Return those of some jobs that have ended or are not known, in one round trip."""
        rows = zip(job_ids, await self._statuses(job_ids), strict=True)
        return [job_id for job_id, (status, _) in rows if status not in (b"queued", b"running")]

    async def _statuses(self, job_ids: Sequence[str]) -> list[tuple[bytes | None, bytes | None]]:
        """Return status and request to cancel of each job; None for what is none."""
        with state_errors(f"cannot look through {len(job_ids)} jobs"):
            rows = await job_fields(self._redis, self._namespace, job_ids, ("status", "cancel"))
        return [(None, None) if isinstance(row, RedisError) else row for row in rows]

    async def counts(self) -> JobCounts:
        """Return the number of jobs by status."""
        return await self._run.mending(self._counts)

    async def _counts(self) -> JobCounts:
        ends = ("succeeded", "failed", "cancelled")
        with state_errors("cannot count jobs"):
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hmget(redis_keys.counts(self._namespace), ends)
                for status in ("queued", "running"):
                    pipeline.zcard(redis_keys.jobs_with_status(self._namespace, status))
                values, num_queued, num_running = await pipeline.execute()
            ended = {end: max(int(value or 0), 0) for end, value in zip(ends, values, strict=True)}
        return JobCounts(queued=num_queued, running=num_running, **ended)

    async def sweep(self) -> int:
        """Forget some finished jobs whose time has come and return how many. `create` and `finish` do so as well."""
        return int(await self._run("sweep", {}, "cannot sweep finished jobs"))

    async def list(
        self, after: str | None = None, limit: int = 50, status: JobStatus | None = None, tenant: str = ""
    ) -> JobPage:
        """Return up to `limit` jobs, newest first, that come after the cursor `after` (a page's `next`).

        With `tenant`, only that one's. Jobs that cannot be read are left out and counted.
        """
        key = redis_keys.jobs_with_status(self._namespace, status) if status else redis_keys.jobs(self._namespace)
        if tenant:
            key = redis_keys.tenant_jobs(self._namespace, tenant, status or "")
        read = partial(page_of_records, self._redis, self._namespace, key, after, limit, self._unreadable)
        return await self._run.mending(read)


def _heads(commits: Sequence[TokenCommit]) -> list[dict[str, Any]]:
    return [
        {"job_id": item.job_id, "attempt": item.attempt, "start": item.start, "num_tokens": len(item.entries)}
        for item in commits
    ]


def _tokens(commits: Sequence[TokenCommit]) -> bytes:
    """Return the tokens of all commits, one a line, as one argument: redis-py spends much on each."""
    return _encode_lines([entry for item in commits for entry in item.entries])
