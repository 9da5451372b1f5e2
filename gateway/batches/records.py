"""Files and batches as Redis keeps them and as OpenAI's clients see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import msgspec

from broker_pipeline.messages.keys import KeyLimits
from gateway.access.caller import Caller

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
FINAL = frozenset({"failed", "completed", "expired", "cancelled"})
Metadata = dict[str, str]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything here: immutable. Times are whole seconds since 1970."""


class FileObject(_Record, frozen=True, kw_only=True):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None


class DeletedFile(_Record, frozen=True, kw_only=True):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class LineError(_Record, frozen=True, kw_only=True):
    """Why a batch's input was refused; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineErrors(_Record, frozen=True, kw_only=True):
    """The first of them."""

    object: Literal["list"] = "list"
    data: tuple[LineError, ...]


class RequestCounts(_Record, frozen=True, kw_only=True):
    """Requests of a batch: all, those answered, those in the error file."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(_Record, frozen=True, kw_only=True):
    """Of a batch's input tokens."""

    cached_tokens: int = 0


class OutputDetails(_Record, frozen=True, kw_only=True):
    """Of a batch's output tokens."""

    reasoning_tokens: int = 0


class BatchUsage(_Record, frozen=True, kw_only=True):
    """Tokens of all answered requests of a batch."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int = 0


class Times(_Record, frozen=True, kw_only=True):
    """When a batch came to each status; null where it has not."""

    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


class _Shared(Times, frozen=True, kw_only=True):
    """What Redis and clients have alike of a batch. `paused` and `priority` are ours."""

    id: str
    status: BatchStatus
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    output_file_id: str | None = None
    error_file_id: str | None = None
    paused: bool = False
    priority: int = 0
    """Batches with a lower one begin earlier."""
    model: str | None = None


class BatchObject(_Shared, frozen=True, kw_only=True):
    """A batch."""

    object: Literal["batch"] = "batch"
    errors: LineErrors | None = None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: Metadata | None = None
    estimated_completed_at: int | None = None
    """When the last request would be answered at the rate so far; null while nobody knows. Ours, too."""


class Batch(_Shared, frozen=True, kw_only=True):
    """A batch as Redis keeps it: the fields of its hash."""

    tenant: str
    key_hash: str = ""
    limits: str = "{}"
    """Of the key, as JSON: what holds for its other requests holds for lines, too."""
    metadata: str = "null"
    """As JSON."""
    output_lives_s: int
    output_file: str
    error_file: str
    """Under what ids its output will be files."""
    errors: str = "[]"
    """As JSON."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def owner(self) -> Caller:
        """Who asked for it."""
        return Caller(frozenset(), self.tenant, self.key_hash, msgspec.json.decode(self.limits, type=KeyLimits))

    @property
    def is_validated(self) -> bool:
        """Whether its input was found right, and its requests are counted."""
        return self.in_progress_at is not None

    @property
    def ended_at(self) -> int | None:
        """When it ended; None while it has not."""
        return getattr(self, f"{self.status}_at") if self.status in FINAL else None

    @property
    def num_done(self) -> int:
        """How many requests are in the output or the error file."""
        return self.completed + self.failed

    def shown(self, now_s: float) -> BatchObject:
        """Return what clients see of it at the time `now_s`."""
        errors = msgspec.json.decode(self.errors, type=tuple[LineError, ...])
        return BatchObject(
            **{name: getattr(self, name) for name in _Shared.__struct_fields__},
            errors=LineErrors(data=errors) if errors else None,
            metadata=msgspec.json.decode(self.metadata, type=Metadata | None),
            request_counts=RequestCounts(total=self.total, completed=self.completed, failed=self.failed),
            usage=BatchUsage(
                input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
                output_tokens_details=OutputDetails(reasoning_tokens=self.reasoning_tokens),
                total_tokens=self.input_tokens + self.output_tokens,
            ),
            estimated_completed_at=self._estimated(now_s),
        )

    def _estimated(self, now_s: float) -> int | None:
        if self.status != "in_progress" or self.paused or not self.num_done or self.in_progress_at is None:
            return None
        per_request_s = max(now_s - self.in_progress_at, 1.0) / self.num_done
        return math.ceil(now_s + per_request_s * (self.total - self.num_done))


class Page(_Record, frozen=True, kw_only=True):
    """Some rows of a list."""

    object: Literal["list"] = "list"
    data: tuple[Any, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, rows: Sequence[Any], *, has_more: bool) -> Self:
        """Make a page of rows that have ids."""
        first, last = (rows[0].id, rows[-1].id) if rows else (None, None)
        return cls(data=tuple(rows), first_id=first, last_id=last, has_more=has_more)


class FileList(Page, frozen=True, kw_only=True):
    """A page of files."""

    data: tuple[FileObject, ...]


class BatchList(Page, frozen=True, kw_only=True):
    """A page of batches, newest first."""

    data: tuple[BatchObject, ...]
