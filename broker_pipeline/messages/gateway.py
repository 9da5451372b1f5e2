"""What a gateway answers besides a job: pages of jobs, the state of the pipeline, errors. Its clients read the same."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.messages.keys import Scope
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.messages.workers import WorkerRecord


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything here: immutable. A later release may tell more, which is passed over."""


class JobList(_Answer, frozen=True, kw_only=True):
    """A page of jobs, newest first. `next` is the `after` of the following page; null on the last one."""

    jobs: tuple[JobRecord, ...]
    next: str | None
    num_unreadable: int = 0
    """Jobs that are left out of this page, since what Redis holds of them cannot be read."""
    num_searched: int = 0
    """Of a search, jobs that were looked through; there may be more to search where there is a `next`."""


class JobPreview(_Answer, frozen=True, kw_only=True):
    """What a job was asked."""

    prompt: str
    """The beginning of its last message's text."""
    num_images: int
    num_videos: int
    thumbnail: str | None = None
    """Its first picture made small: a `data:` URL of a JPEG of at most 192 x 192 pixels."""
    why_none: str | None = None
    """Why there is no such picture; null also where the job had none."""


class CallerInfo(_Answer, frozen=True, kw_only=True):
    """Who sent a request, and what that one may do."""

    tenant: str
    """Whose jobs the sender makes and sees; empty: everybody's."""
    scopes: tuple[Scope, ...]
    has_key: bool
    """Whether the request brought a key that the gateway knows."""


class RateSample(_Answer, frozen=True, kw_only=True):
    """The rates of a pipeline at one moment."""

    at: float = 0.0
    """By Redis's clock, in seconds since 1970."""
    num_waiting: int
    """Jobs in the queue."""
    num_running: int
    num_failed: int
    """Jobs that have failed since Redis began."""
    captions_per_s: float
    tokens_per_s: float


class RateHistory(_Answer, frozen=True, kw_only=True):
    """The rates of the last hour, oldest first, one every `interval_s` seconds while a gateway was there to note it."""

    interval_s: float
    samples: tuple[RateSample, ...]


class QueueStatus(_Answer, frozen=True, kw_only=True):
    """Jobs in the work queue: waiting, and handed to a conductor but not finished."""

    num_waiting: int
    num_in_progress: int


class PipelineStatus(_Answer, frozen=True, kw_only=True):
    """The state of one pipeline."""

    pipeline: str
    workers: tuple[WorkerRecord, ...]
    conductor: ConductorStatus | None
    """What the active conductors show of themselves, merged; null while there is none."""
    queue: QueueStatus
    jobs: dict[str, int]
    """Number of jobs by status."""
    certificates: dict[str, float] = {}
    """When the certificates of hosts end, in seconds since 1970; `servers` are those of NATS and Redis."""


class Readiness(_Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Whether jobs can be taken and will be run; `checks` tells operators which part is missing, nobody else."""

    ready: bool
    checks: dict[str, str] = msgspec.field(default_factory=dict)


class Health(_Answer, frozen=True, kw_only=True):
    """The process lives."""

    status: Literal["ok"] = "ok"


class ErrorDetail(_Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was not done."""

    code: str
    """Stable name of the kind of error."""
    message: str
    """For people; what was wrong and what to do."""
    retryable: Annotated[bool, Meta(description="Whether the same request may succeed later.")]
    request_id: str
    """Also in the header X-Request-Id and in the gateway's log."""
    field: str | None = None
    """Path of the offending field, such as `sampling.temperature` or `images[0]`."""

    def to_failure(self) -> Failure:
        """Return it as the failure that it was."""
        return Failure(self.code, self.message, self.field, self.retryable)


class BulkAnswer(_Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one job of many: its record, or why it was refused."""

    job: JobRecord | None = None
    is_repeat: bool = False
    """Whether an earlier submission with the same key was found."""
    error: ErrorDetail | None = None
    retry_after_s: float = 0.0
    """Where it may be accepted later, seconds to wait."""


class BulkAnswers(_Answer, frozen=True, kw_only=True):
    """What came of many jobs, in their order."""

    jobs: tuple[BulkAnswer, ...]


class EndedJobs(_Answer, frozen=True, kw_only=True):
    """Those of the jobs asked about that have ended, and those that are not known (any more)."""

    jobs: tuple[JobRecord, ...]
    unknown: tuple[str, ...] = ()


class ErrorBody(_Answer, frozen=True, kw_only=True):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail
