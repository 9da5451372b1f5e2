"""How jobs are written in Redis: the fields of their hash, and how scripts are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import orjson

from broker_pipeline import redis_keys
from broker_pipeline.errors import Failure, JobNotFoundError
from broker_pipeline.messages.jobs import JobRecord, JobResult, JobSpec, JobStatus, PastEnd
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.script_runner import ScriptRunner

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
    "fingerprint",
    "first_attempt",
    "tenant",
)

_encode = msgspec.json.Encoder().encode
_decode_result = msgspec.json.Decoder(JobResult).decode
_decode_failure = msgspec.json.Decoder(Failure).decode
_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode
_decode_past_ends = msgspec.json.Decoder(PastEnd).decode_lines


def job_scripts(redis: RedisClient, namespace: str, result_ttl_s: int = DEFAULT_RESULT_TTL_S) -> ScriptRunner:
    """Return what runs the scripts about jobs of one namespace."""
    types = {
        redis_keys.jobs(namespace): "zset",
        redis_keys.expiry(namespace): "zset",
        redis_keys.counts(namespace): "counters",
        redis_keys.unpublished(namespace): "zset",
    }
    by_status = {redis_keys.jobs_with_status(namespace, status): "zset" for status in get_args(JobStatus)}
    templates = {
        "job": redis_keys.job(namespace, "@"),
        "tokens": redis_keys.job_tokens(namespace, "@"),
        "status": redis_keys.jobs_with_status(namespace, "@"),
        "tenant": redis_keys.tenant_jobs(namespace, "@"),
    }
    shared = {"keys": templates, "result_ttl_s": result_ttl_s}
    return ScriptRunner(redis, "jobs", list(types), shared, types | by_status)


def is_known(status: bytes | None) -> bool:
    """Whether a job's field `status` is that of a job; what was discarded leaves a mark for a while."""
    return status not in (None, b"discarded")


def spec_args(spec: JobSpec) -> dict[str, Any]:
    """Return a script's arguments for a job."""
    return {
        "job_id": spec.job_id,
        "spec": as_json(spec),
        "created_at": repr(float(spec.created_at)),
        "metadata": orjson.dumps(spec.metadata).decode(),
        "num_retries": spec.num_retries,
        "tenant": spec.tenant,
    }


def as_json(value: msgspec.Struct) -> str:
    """Return a struct as a script's argument that it stores as it is."""
    return _encode(value).decode()


def job_record(job_id: str, fields: Sequence[bytes | None]) -> JobRecord:
    """Build a record from the hash's fields in the order of `RECORD_FIELDS`."""
    status, created_at, started_at, finished_at, attempt, metadata, result, error, num_retries, failures, *more = fields
    fingerprint, first_attempt, tenant = more
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
            "fingerprint": fingerprint and fingerprint.decode(),
            "first_attempt": (first_attempt or b"1").decode(),
            "tenant": (tenant or b"").decode(),
        }
        return msgspec.convert(plain, JobRecord, strict=False)


def job_not_found(job_id: str) -> JobNotFoundError:
    """Build the error of a job that is not there (any more)."""
    return JobNotFoundError(f"no job {job_id}: it never was, or it ended too long ago", field="job_id")
