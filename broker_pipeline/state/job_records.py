"""How jobs are written in Redis: the fields of their hash, and the scripts that change them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import Failure, JobNotFoundError
from broker_pipeline.messages.jobs import JobRecord, JobResult, JobSpec, PastEnd
from broker_pipeline.state.redis_client import RedisClient, ScriptRunner, state_errors

DEFAULT_RESULT_TTL_S = 7 * 24 * 3600
RECORD_FIELDS = (
    "status",
    "created_at",
    "started_at",
    "finished_at",
    "attempt",
    "metadata",
    "result",
    "error",
    "num_retries",
    "failures",
)

_encode = msgspec.json.Encoder().encode
_decode_result = msgspec.json.Decoder(JobResult).decode
_decode_failure = msgspec.json.Decoder(Failure).decode
_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode
_decode_past_ends = msgspec.json.Decoder(PastEnd).decode_lines


class JobScripts:
    """Runs the scripts about jobs of one namespace."""

    def __init__(self, redis: RedisClient, namespace: str, result_ttl_s: int = DEFAULT_RESULT_TTL_S) -> None:
        self._run = ScriptRunner(redis)
        self._keys = [redis_keys.jobs(namespace), redis_keys.expiry(namespace), redis_keys.counts(namespace)]
        self._prelude_args: list[Any] = [
            redis_keys.job(namespace, "@"),
            redis_keys.job_tokens(namespace, "@"),
            redis_keys.jobs_with_status(namespace, "@"),
            result_ttl_s,
        ]

    async def run(self, script: str, args: Sequence[Any], action: str, *, extra_keys: Sequence[str] = ()) -> Any:
        """Run a script with `args` after those of the prelude; raises `StateError` starting with `action`."""
        return await self._run(script, [*self._keys, *extra_keys], [*self._prelude_args, *args], action=action)


def is_known(status: bytes | None) -> bool:
    """Whether a job's field `status` is that of a job; what was discarded leaves a mark for a while."""
    return status not in (None, b"discarded")


def spec_args(spec: JobSpec) -> list[Any]:
    """Return a script's arguments for a job: id, spec, created_at, metadata, num_retries."""
    return [spec.job_id, _encode(spec), repr(float(spec.created_at)), _encode(spec.metadata), spec.num_retries]


def job_record(job_id: str, fields: Sequence[bytes | None]) -> JobRecord:
    """Build a record from the hash's fields in the order of `RECORD_FIELDS`."""
    status, created_at, started_at, finished_at, attempt, metadata, result, error, num_retries, failures = fields
    with state_errors(f"cannot read job {job_id}"):
        plain = {
            "job_id": job_id,
            "status": (status or b"").decode(),
            "created_at": created_at and created_at.decode(),
            "started_at": started_at and started_at.decode(),
            "finished_at": finished_at and finished_at.decode(),
            "attempt": (attempt or b"0").decode(),
            "metadata": _decode_metadata(metadata or b"{}"),
            "result": result and _decode_result(result),
            "error": error and _decode_failure(error),
            "num_retries": (num_retries or b"0").decode(),
            "failures": tuple(_decode_past_ends(failures or b"")),
        }
        return msgspec.convert(plain, JobRecord, strict=False)


def job_not_found(job_id: str) -> JobNotFoundError:
    """Build the error of a job that is not there (any more)."""
    return JobNotFoundError(f"no job {job_id}: it never was, or it ended too long ago", field="job_id")
