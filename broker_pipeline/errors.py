"""Every error that broker-pipeline raises on purpose.

Users see `code` and the message; `retryable` says whether the same work may succeed when tried again.

    PipelineError
    ├── ConfigurationError            a flag, environment variable or file is wrong
    │   ├── NoPlaceError              one row has no place in what a run writes; the others have
    │   └── SecretsError              secrets are missing, unreadable, or for somebody else
    │       └── CertificateError      a certificate has ended, or is of another host, authority or key
    ├── InvalidRequestError           a request is wrong; `field` names where
    │   ├── PromptTooLongError
    │   ├── BodyTooLargeError, BodyTooSlowError
    │   ├── IdempotencyConflictError  the key was used before, for something else
    │   └── MediaError                an image or video cannot be used
    │       ├── NotAnImageError, UnsupportedImageError, TruncatedImageError
    │       ├── ImageTooLargeError, ImageShapeError
    │       ├── NotAVideoError, VideoTooLongError
    │       ├── MediaTooLargeError, MediaMissingError, UnreadableFileError
    │       └── MediaFetchError
    │           └── PrivateAddressError
    ├── JobNotFoundError, JobStateError
    ├── WorkerNotFoundError, ModelNotFoundError, KeyNotFoundError
    ├── FileUnknownError, FileInUseError
    ├── BatchNotFoundError, BatchStateError
    ├── AccessError
    │   ├── UnauthenticatedError      no key, or one that is not known (any more)
    │   └── PermissionDeniedError     not by this caller, or not from this web page
    ├── QueueFullError                accepted nothing; try again after `retry_after_s`
    │   └── RateLimitError            the key has had its share
    ├── ContractError                 a message breaks the activation contract
    │   ├── MalformedEnvelopeError, ContractVersionError, FingerprintMismatchError
    │   ├── StaleEpochError, TensorMismatchError
    │   └── PartError                 a part of a cut payload is missing, foreign or late
    ├── StageError                    a stage cannot do what an envelope asks
    │   ├── SessionUnknownError, KVCapacityError, KVPositionError
    │   ├── VisualRowsMissingError
    │   ├── NonFiniteLogitsError
    │   │   └── ConstantLogitsError
    │   ├── NothingLeftError          the session's own settings rule out every token
    │   ├── GrammarError              the session's grammar cannot be compiled, or became too much work
    │   ├── WorkerBusyError           a worker's queue or buffer is full
    │   ├── WorkerLostError           a worker died, or fell silent, with the session in hand
    │   ├── RouteLostError            a stage was lost while the session was prepared for it
    │   └── ComputeError              the computation itself failed (out of memory, a bad kernel)
    ├── TransportError                the broker is unreachable or dropped something
    │   ├── NoResponderError, RequestTimeoutError, SlowConsumerError, PayloadTooLargeError
    │   ├── EdgeFullError, EdgeLostError   a payload has to take NATS instead
    │   └── GatewayUnreachableError   no gateway answers under this URL
    ├── StateError                    Redis is unreachable or refused a write
    │   ├── LeaseLostError, WorkerNameTakenError, StaleAttemptError
    │   └── GarbledStateError         Redis answers, with something that this version did not write
    ├── DeadlineExceededError         a part did not answer in time
    ├── RetriesExhaustedError         a job failed in every attempt that it was allowed
    ├── NoRouteError                  nothing that can hold a job has come back in time
    ├── ModelChangedError             another model has begun a job that is not to begin again
    ├── CancelledJobError             somebody asked for the job to stop
    ├── ShuttingDownError             this process ends before it has an answer; another one may give it
    ├── ArtifactError                 an artifact directory is incomplete, altered or of another model
    │   ├── ArtifactMissingError, ArtifactCorruptError, TensorMissingError, RandomWeightsError
    │   ├── ModelConfigError          a configuration file of the model is wrong; `field` names where
    │   └── ExportError               a checkpoint cannot be exported
    │       ├── CheckpointError, AmbiguousLayoutError
    │       ├── HubError, DiskSpaceError
    │       └── TargetExistsError, ExportStateError
    ├── FetchError                    files of an artifact cannot be brought from where they are
    │   └── FetchInterruptedError     … at this moment: the same request may succeed
    ├── ServerStartError              an embedded server did not start
    └── OutputError                   what a command makes cannot be written: a full disk, a reader that has gone
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import msgspec


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it travels: over NATS, in Redis and in HTTP answers."""

    code: str
    message: str
    field: str | None = None
    retryable: bool = False


class PipelineError(Exception):
    """Root of the tree. `field` names the offending input where there is one."""

    code: ClassVar[str] = "internal"
    retryable: bool = False

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def to_failure(self) -> Failure:
        """Return the error in the form that travels."""
        return Failure(self.code, self.message, self.field, self.retryable)


class ConfigurationError(PipelineError):
    """A flag, environment variable or file is wrong."""

    code = "configuration"


class NoPlaceError(ConfigurationError):
    """One row has no place in what a run writes, which the others have."""

    code = "no_place"


class SecretsError(ConfigurationError):
    """Secrets are missing, unreadable, or for somebody else."""

    code = "secrets"

    def __init__(self, message: str, *, field: str | None = "secrets") -> None:
        super().__init__(message, field=field)


class CertificateError(SecretsError):
    """A certificate of this host, or of who is connected to, is not good: ended, of another host, authority or key."""

    code = "certificate"


class InvalidRequestError(PipelineError):
    """A request is wrong; `field` names where."""

    code = "invalid_request"


class PromptTooLongError(InvalidRequestError):
    """Prompt and output limit together exceed what the model or the KV room can hold."""

    code = "prompt_too_long"


class BodyTooLargeError(InvalidRequestError):
    """A request body exceeds the gateway's limit."""

    code = "body_too_large"


class BodyTooSlowError(InvalidRequestError):
    """A request body did not arrive in time."""

    code = "body_too_slow"
    retryable = True


class IdempotencyConflictError(InvalidRequestError):
    """The idempotency key was used before, for another request."""

    code = "idempotency_conflict"


class MediaError(InvalidRequestError):
    """An image or video cannot be used."""

    code = "media"


class NotAnImageError(MediaError):
    """The bytes are not an image in a supported format."""

    code = "not_an_image"


class UnsupportedImageError(MediaError):
    """The image is of a kind (bits, colours, compression) that is not decoded here; the message names it."""

    code = "unsupported_image"


class NotAVideoError(MediaError):
    """The bytes are not a video of an accepted container, or hold no frames."""

    code = "not_a_video"


class VideoTooLongError(MediaError):
    """The video has too many seconds, or takes too many to decode."""

    code = "video_too_long"


class TruncatedImageError(MediaError):
    """The image ends before its data does, or its data is corrupt."""

    code = "truncated_image"


class ImageTooLargeError(MediaError):
    """The image has more pixels or frames than are decoded here."""

    code = "image_too_large"


class ImageShapeError(MediaError):
    """The image's sides are too unequal, or one of them is too short."""

    code = "image_shape"


class MediaTooLargeError(MediaError):
    """The file has more bytes than are accepted."""

    code = "media_too_large"


class MediaMissingError(MediaError):
    """The media store no longer holds what a job refers to."""

    code = "media_missing"


class UnreadableFileError(MediaError):
    """A file that was named cannot be read, or is no regular file."""

    code = "unreadable_file"


class MediaFetchError(MediaError):
    """A URL could not be fetched; `retryable` where what stood in the way may pass, `host` where it was not reached."""

    code = "media_fetch"

    def __init__(
        self, message: str, *, field: str | None = None, retryable: bool = False, host: str | None = None
    ) -> None:
        super().__init__(message, field=field)
        self.retryable = retryable
        self.host = host


class PrivateAddressError(MediaFetchError):
    """A URL leads to an address that is not public."""

    code = "private_address"


class JobNotFoundError(PipelineError):
    """No job has this id."""

    code = "job_not_found"


class JobStateError(PipelineError):
    """The job is in a state that does not allow this."""

    code = "job_state"


class FileUnknownError(PipelineError):
    """No file has this id, or it was deleted."""

    code = "file_not_found"


class FileInUseError(PipelineError):
    """A batch still reads the file."""

    code = "file_in_use"


class BatchNotFoundError(PipelineError):
    """No batch has this id, or it ended long ago."""

    code = "batch_not_found"


class BatchStateError(PipelineError):
    """The batch's status does not allow this."""

    code = "batch_state"


class WorkerNotFoundError(PipelineError):
    """There is no live worker of this name."""

    code = "worker_not_found"


class KeyNotFoundError(PipelineError):
    """There is no such key to the gateway."""

    code = "key_not_found"


class AccessError(PipelineError):
    """A request was refused for who sent it."""

    code = "access"


class UnauthenticatedError(AccessError):
    """The request has no key, or one that is not known (any more)."""

    code = "unauthenticated"


class PermissionDeniedError(AccessError):
    """Whoever sent the request may not do this, or not from where it was sent."""

    code = "permission_denied"


class ModelNotFoundError(PipelineError):
    """No model of this name is served."""

    code = "model_not_found"


class QueueFullError(PipelineError):
    """The job queue or the media store is full; nothing was accepted."""

    code = "queue_full"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitError(QueueFullError):
    """A key has had its share for now; nothing was accepted."""

    code = "rate_limited"


class ContractError(PipelineError):
    """A message breaks the activation contract."""

    code = "contract"


class MalformedEnvelopeError(ContractError):
    """Metadata or payload cannot be parsed."""

    code = "malformed_envelope"


class ContractVersionError(ContractError):
    """The sender speaks another version of the contract."""

    code = "contract_version"


class FingerprintMismatchError(ContractError):
    """The sender's or worker's artifact is not this pipeline's."""

    code = "fingerprint_mismatch"


class StaleEpochError(ContractError):
    """The sender belongs to an older epoch of the pipeline."""

    code = "stale_epoch"


class TensorMismatchError(ContractError):
    """A tensor's dtype, shape or size does not fit the model or its table entry."""

    code = "tensor_mismatch"


class PartError(ContractError):
    """A part of a cut payload is missing, foreign or late."""

    code = "part"
    retryable = True


class StageError(PipelineError):
    """A stage cannot do what an envelope asks."""

    code = "stage"
    retryable = True


class SessionUnknownError(StageError):
    """The stage has lost, or never had, this session."""

    code = "session_unknown"


class KVCapacityError(StageError):
    """The stage has no room for the session's keys and values."""

    code = "kv_capacity"


class KVPositionError(StageError):
    """A segment does not start where the session's cached tokens end."""

    code = "kv_position"


class VisualRowsMissingError(StageError):
    """A segment needs visual rows that were never delivered, or have expired."""

    code = "visual_rows_missing"


class NonFiniteLogitsError(StageError):
    """The model's output for this session holds NaN or infinity."""

    code = "non_finite_logits"


class ConstantLogitsError(NonFiniteLogitsError):
    """The model's output for this session is the same number for every token, which says nothing."""

    code = "constant_logits"


class NothingLeftError(StageError):
    """Bad words, n-grams and other settings of the session rule out every token."""

    code = "nothing_left"
    retryable = False


class GrammarError(StageError):
    """The grammar of structured outputs cannot be compiled for this model, or has met a limit on the way."""

    code = "grammar"
    retryable = False


class WorkerBusyError(StageError):
    """A worker's queue or buffer is full; the same request may fit a moment later."""

    code = "worker_busy"


class WorkerLostError(StageError):
    """The worker that prepared the session died, or fell silent, and the session may be why."""

    code = "worker_lost"


class RouteLostError(StageError):
    """A stage that the session was being prepared for was lost meanwhile."""

    code = "route_lost"


class ComputeError(StageError):
    """The computation itself failed (out of memory, a bad kernel)."""

    code = "compute"


class TransportError(PipelineError):
    """The broker is unreachable or dropped something."""

    code = "transport"
    retryable = True


class SubjectDeniedError(TransportError):
    """NATS refuses this user, or does not allow it this subject."""

    code = "subject_denied"
    retryable = False


class NoResponderError(TransportError):
    """Nobody listens on the subject."""

    code = "no_responder"


class RequestTimeoutError(TransportError):
    """A request got no answer in time."""

    code = "request_timeout"


class SlowConsumerError(TransportError):
    """The receiver was too slow and the client dropped messages."""

    code = "slow_consumer"


class PayloadTooLargeError(TransportError):
    """A message is larger than the broker accepts."""

    code = "payload_too_large"
    retryable = False


class EdgeFullError(TransportError):
    """An edge has no room for a payload at this moment."""

    code = "edge_full"


class EdgeLostError(TransportError):
    """An edge is gone, or could not be made; its payloads take NATS, and what was under way on it is lost."""

    code = "edge_lost"


class GatewayUnreachableError(TransportError):
    """No gateway answers under this URL, or what answers is none."""

    code = "gateway_unreachable"


class StateError(PipelineError):
    """Redis is unreachable or refused a write."""

    code = "state"
    retryable = True


class LeaseLostError(StateError):
    """Another conductor holds the pipeline now."""

    code = "lease_lost"


class WorkerNameTakenError(StateError):
    """A live worker already has this name."""

    code = "worker_name_taken"
    retryable = False


class StaleAttemptError(StateError):
    """A newer attempt of the session exists; this one's writes are void."""

    code = "stale_attempt"
    retryable = False


class StateDeniedError(StateError):
    """Redis refuses this user, or does not allow it this."""

    code = "state_denied"
    retryable = False


class GarbledStateError(StateError):
    """Redis holds something that this version did not write; asking again is no use, others' rows are all right."""

    code = "garbled_state"
    retryable = False


class DeadlineExceededError(PipelineError):
    """A part did not answer in time."""

    code = "deadline_exceeded"
    retryable = True


class RetriesExhaustedError(PipelineError):
    """A job failed in every attempt that it was allowed."""

    code = "retries_exhausted"


class NoRouteError(PipelineError):
    """No route that can hold the job was there for as long as it may wait for one."""

    code = "no_route"


class ModelChangedError(PipelineError):
    """Another model has begun the job, and it is not to begin again."""

    code = "model_changed"


class CancelledJobError(PipelineError):
    """Somebody asked for the job to stop."""

    code = "cancelled"


class ShuttingDownError(PipelineError):
    """This process ends before it has an answer."""

    code = "shutting_down"
    retryable = True


class ArtifactError(PipelineError):
    """An artifact directory is incomplete, altered or of another model."""

    code = "artifact"


class ArtifactMissingError(ArtifactError):
    """There is no artifact here, or this host lacks a file of it."""

    code = "artifact_missing"


class ArtifactCorruptError(ArtifactError):
    """A file of the artifact is not what the export wrote."""

    code = "artifact_corrupt"


class RandomWeightsError(ArtifactError):
    """The artifact is for measuring: it has random weights, and no file that could be verified or exported."""

    code = "random_weights"


class TensorMissingError(ArtifactError):
    """The artifact has no tensor of this name."""

    code = "tensor_missing"


class ModelConfigError(ArtifactError):
    """A configuration file of the model lacks a field, or a field's value cannot be used; `field` names it."""

    code = "model_config"


class ExportError(ArtifactError):
    """A checkpoint cannot be exported."""

    code = "export"


class CheckpointError(ExportError):
    """The checkpoint's tensors are not the ones that its configuration asks for, or cannot be read."""

    code = "checkpoint"


class AmbiguousLayoutError(CheckpointError):
    """The shape of expert tensors fits both layouts, so that guessing could silently swap their axes."""

    code = "ambiguous_layout"


class HubError(ExportError):
    """The hub is unreachable, or has no such repository, revision or file."""

    code = "hub"


class DiskSpaceError(ExportError):
    """The target's file system has too little room."""

    code = "disk_space"


class TargetExistsError(ExportError):
    """The target holds something else."""

    code = "target_exists"


class ExportStateError(ExportError):
    """An unfinished export in the way is of another source, or still running."""

    code = "export_state"


class FetchError(PipelineError):
    """Files of an artifact cannot be brought from where they are."""

    code = "fetch"


class FetchInterruptedError(FetchError):
    """A file came in part, or not now: the same request may succeed."""

    code = "fetch_interrupted"
    retryable = True


class ServerStartError(PipelineError):
    """An embedded server, or a service, did not start; `exit_code` is what a service said of itself."""

    code = "server_start"
    exit_code: int | None = None


class OutputError(PipelineError):
    """What a command makes cannot be written: the disk is full, or the reader has gone."""

    code = "output"


def error_from_failure(failure: Failure) -> PipelineError:
    """Return a peer's failure as an error of the same class; as a plain `PipelineError` when its code is unknown."""
    found = _errors_by_code().get(failure.code, PipelineError)
    error = found(failure.message)
    error.field = failure.field
    error.retryable = failure.retryable
    return error


@cache
def _errors_by_code() -> dict[str, type[PipelineError]]:
    """Return the classes that this process knew when it first met a failure of a peer's.

    A class without a code of its own is one that does not travel: a failure is the class that has the code.
    """
    by_code: dict[str, type[PipelineError]] = {}
    unseen: list[type[PipelineError]] = [PipelineError]
    while unseen:
        each = unseen.pop()
        if "code" in vars(each):
            by_code[each.code] = each
        unseen += each.__subclasses__()
    return by_code
