"""Exit codes of every command and service; sysexits(3) numbers where one fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from broker_pipeline.errors import (
    AccessError,
    ArtifactError,
    ConfigurationError,
    FetchError,
    InvalidRequestError,
    JobNotFoundError,
    JobStateError,
    KeyNotFoundError,
    LeaseLostError,
    OutputError,
    PipelineError,
    ServerStartError,
    StateError,
    TransportError,
    WorkerNameTakenError,
    WorkerNotFoundError,
)

OK = 0
SOME_FAILED = 1
USAGE = 2
UNAVAILABLE = 69
INTERNAL = 70
OUTPUT = 74
TEMPORARY = 75
CONFIGURATION = 78
NO_PERMISSION = 77
INTERRUPTED = 130

# The first class that fits decides, so the narrower ones stand first.
_CODES: tuple[tuple[type[PipelineError], int], ...] = (
    (ConfigurationError, USAGE),
    (InvalidRequestError, USAGE),
    (JobNotFoundError, USAGE),
    (JobStateError, USAGE),
    (WorkerNotFoundError, USAGE),
    (KeyNotFoundError, USAGE),
    (AccessError, NO_PERMISSION),
    (ArtifactError, CONFIGURATION),
    (LeaseLostError, TEMPORARY),
    (WorkerNameTakenError, TEMPORARY),
    (FetchError, UNAVAILABLE),
    (ServerStartError, UNAVAILABLE),
    (TransportError, UNAVAILABLE),
    (StateError, UNAVAILABLE),
    (OutputError, OUTPUT),
)
_TOLD = frozenset({USAGE, TEMPORARY, CONFIGURATION})
"""What a part that did not start says of its cause, and whoever started it passes on."""


def exit_code_of(error: BaseException) -> int:
    """Return the exit code for an error; of a group, that of its first `PipelineError`."""
    leaf = first_pipeline_error(error)
    if leaf is None:
        return INTERNAL
    if isinstance(leaf, ServerStartError) and leaf.exit_code in _TOLD:
        return leaf.exit_code
    return next((code for kind, code in _CODES if isinstance(leaf, kind)), INTERNAL)


def first_pipeline_error(error: BaseException) -> PipelineError | None:
    """Return the first `PipelineError` in an error or a tree of exception groups."""
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = (first_pipeline_error(child) for child in error.exceptions)
        return next((leaf for leaf in found if leaf is not None), None)
    return None


@contextmanager
def raising_first_error() -> Iterator[None]:
    """Raise the first `PipelineError` of an exception group in place of the group."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise first_pipeline_error(group) or group from None
