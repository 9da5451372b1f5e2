"""What is done for a job is one trace, over all services (`--otlp-endpoint`).

    job                                    conductor, from acceptance to the end
    ├── request, store media, …            gateway
    ├── attempt 1                          conductor
    │   ├── prepare, deliver rows          vision worker
    │   └── session                        each stage, from opening to closing
    └── attempt 2 …

The id of a job's trace is made of the job's own, and so are those of the spans that others hang from. So no message
carries a context, and spans find their parents whatever has died meanwhile. Who calls with a trace of their own finds
it linked to the request's span (W3C's `traceparent`).
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from broker_pipeline.tracing.activities import ATTEMPT, JOB, Activity
from broker_pipeline.tracing.events import Fact

_ROOT = "job"


class JobTraces(Protocol):
    """Where spans of jobs go. Safe to use from every thread."""

    worker: str
    """Which process this is."""

    def take(self, activity: Activity, start_ns: int, stop_ns: int, facts: dict[str, Fact]) -> None:
        """Take what was done for the job `facts["session"]`; times are of the monotonic clock."""

    def stop(self) -> None:
        """Send what is left."""


def trace_id(job_id: str) -> str:
    """Return the trace of a job as logs and viewers write it: 32 hexadecimal digits."""
    return hashlib.blake2b(job_id.encode(), digest_size=16).hexdigest()


def span_id(job_id: str, place: str) -> int:
    """Return the id of a span that others hang from, of 64 bits."""
    return int.from_bytes(hashlib.blake2b(f"{job_id} {place}".encode(), digest_size=8).digest())


def places(activity: Activity, attempt: int) -> tuple[str, str]:
    """Return what a span is called in its trace, if others hang from it, and what it hangs from itself."""
    if activity is JOB:
        return _ROOT, ""
    of_attempt = f"attempt {attempt}"
    if activity is ATTEMPT:
        return of_attempt, _ROOT
    return "", of_attempt if attempt else _ROOT
