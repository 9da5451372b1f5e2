"""Everything that parts of broker-pipeline say to each other, as frozen structs.

Each struct refuses unknown fields and checks its ranges while it is decoded, so that what code holds is what the
contract allows. Tensors travel beside the metadata (see `wire.codec`); here is only their table.

Sizes are in bytes, times in seconds. `session` is the id of one generation; today a job has exactly one, and they
share their id.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.errors import Failure

CONTRACT_VERSION = 2

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
SessionRef = Annotated[str, Meta(min_length=1, max_length=64)]
"""The name of a session that was opened, and checked, as a `Name`; any other belongs to no session. Hundreds come in
one message, and patterns for them would take two thirds of the time that it is decoded in."""
Subject = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.$-]{1,255}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0, le=2**40)]
PositiveCount = Annotated[int, Meta(ge=1, le=2**40)]
Seconds = Annotated[float, Meta(ge=0)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
PROCESSOR_PREFIX = "cpu-"
"""What `WorkerRecord.device_id` begins with where a processor computes, not a card."""
WireDtype = Literal["bfloat16", "float32", "int32"]


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, gc=False):
    """Base of everything here: immutable, strict, compact; never in a cycle, so that the collector may pass it over."""


# --- what a user asks for -------------------------------------------------------------------------------------------


class SamplingParams(_Wire, frozen=True, kw_only=True):
    """Sampling as a user may ask for it; `None` means the model's own default (its generation_config)."""

    max_tokens: Annotated[int, Meta(ge=1, le=262_144)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """None: no log-probabilities. n: that of the chosen token and of the n most likely ones."""
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=16)] = ()
    ignore_eos: bool = False


class SamplingSettings(_Wire, frozen=True, kw_only=True):
    """Sampling as a stage obeys it: every field decided. Greedy is `temperature == 0`; `top_k == 0` means no limit."""

    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    @property
    def needs_history(self) -> bool:
        """Whether the sampler must know which tokens the session holds already."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class MediaRef(_Wire, frozen=True, kw_only=True):
    """Bytes in the media store: `object_name` finds them, `sha256` proves them."""

    sha256: Sha256
    object_name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    num_bytes: Count


class TextPart(_Wire, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text in a chat message."""

    text: Annotated[str, Meta(max_length=2_000_000)]


class ImagePart(_Wire, frozen=True, kw_only=True, tag_field="type", tag="image"):
    """One image in a chat message."""

    media: MediaRef


class VideoPart(_Wire, frozen=True, kw_only=True, tag_field="type", tag="video"):
    """One video in a chat message, given as its frames in order."""

    frames: Annotated[tuple[MediaRef, ...], Meta(min_length=1, max_length=768)]
    fps: Annotated[float, Meta(gt=0, le=240)] = 2.0


class ChatMessage(_Wire, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[tuple[TextPart | ImagePart | VideoPart, ...], Meta(min_length=1, max_length=1024)]


class JobSpec(_Wire, frozen=True, kw_only=True):
    """A job as it waits in the queue: whole, so that it can run even if Redis has forgotten it."""

    job_id: Name
    created_at: Seconds
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=1024)]
    sampling: SamplingParams = SamplingParams()
    metadata: dict[str, str] = {}
    num_retries: Count = 0
    """How often somebody has sent the job again after its end; tells a message of an earlier time from this one."""

    @property
    def media_holder(self) -> str:
        """Under what name this sending of the job refers to its media: no earlier one can release them."""
        return f"{self.job_id}.{self.num_retries}" if self.num_retries else self.job_id

    def with_media(self, refs: Mapping[str, MediaRef]) -> "JobSpec":
        """Return the job with its media found where `refs` (by sha256) says."""

        def moved(part: TextPart | ImagePart | VideoPart) -> TextPart | ImagePart | VideoPart:
            if isinstance(part, ImagePart):
                return msgspec.structs.replace(part, media=refs[part.media.sha256])
            if isinstance(part, VideoPart):
                return msgspec.structs.replace(part, frames=tuple(refs[frame.sha256] for frame in part.frames))
            return part

        messages = tuple(
            msgspec.structs.replace(message, content=tuple(map(moved, message.content))) for message in self.messages
        )
        return msgspec.structs.replace(self, messages=messages)

    def media(self) -> tuple[MediaRef, ...]:
        """Return every media reference of the job, in order."""
        parts = [part for message in self.messages for part in message.content]
        refs: list[MediaRef] = []
        for part in parts:
            if isinstance(part, ImagePart):
                refs.append(part.media)
            elif isinstance(part, VideoPart):
                refs.extend(part.frames)
        return tuple(refs)


# --- what a job becomes ---------------------------------------------------------------------------------------------

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL_STATUSES: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
FinishReason = Literal["stop", "length", "cancelled", "error"]


class TokenLogprob(_Wire, frozen=True, kw_only=True):
    """Log-probability of one token (natural logarithm, after penalties, before temperature and filters)."""

    token_id: TokenId
    logprob: float


class TokenEntry(_Wire, frozen=True, kw_only=True):
    """One committed token: its id, the text that became visible with it, its log-probabilities."""

    token_id: TokenId
    text: str = ""
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()


class Usage(_Wire, frozen=True, kw_only=True):
    """Token counts of one job."""

    num_prompt_tokens: Count
    num_visual_tokens: Count
    num_output_tokens: Count


class JobResult(_Wire, frozen=True, kw_only=True):
    """What a finished job holds."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    num_attempts: PositiveCount = 1


class PastEnd(_Wire, frozen=True, kw_only=True):
    """How a job had ended before it was sent again."""

    status: Literal["failed", "cancelled"]
    attempt: Count
    """Attempts that had been begun by then."""
    finished_at: Seconds
    error: Failure | None = None


class JobRecord(_Wire, frozen=True, kw_only=True):
    """A job as Redis knows it and as the gateway shows it."""

    job_id: Name
    status: JobStatus
    created_at: Seconds
    started_at: Seconds | None = None
    finished_at: Seconds | None = None
    attempt: Count = 0
    metadata: dict[str, str] = {}
    result: JobResult | None = None
    error: Failure | None = None
    num_retries: Count = 0
    """How often somebody has sent the job again after its end."""
    failures: tuple[PastEnd, ...] = ()
    """How it had ended before that, the last ones, oldest first."""


class JobEvent(_Wire, frozen=True, kw_only=True):
    """One step of a job's life, for streaming clients. `index` counts the tokens committed before this event."""

    job_id: Name
    kind: Literal["queued", "started", "tokens", "finished"]
    index: Count = 0
    tokens: tuple[TokenEntry, ...] = ()
    record: JobRecord | None = None


class WatchRequest(_Wire, frozen=True, kw_only=True):
    """Asks conductors to publish these jobs' tokens as they are committed, for some seconds; those of others are not.

    Tokens are in Redis whether or not anybody watches.
    """

    job_ids: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    is_for_all: bool = False
    """Whether all jobs are meant, whatever their ids."""
    for_s: Annotated[float, Meta(gt=0, le=300)]


class CancelRequest(_Wire, frozen=True, kw_only=True):
    """Asks whoever runs the job to stop at the next token."""

    job_id: Name


# --- workers --------------------------------------------------------------------------------------------------------

Role = Literal["stage", "vision", "conductor", "gateway"]


class BlockRange(_Wire, frozen=True, kw_only=True):
    """Decoder layers `[start, stop)`."""

    start: Count
    stop: PositiveCount

    def __len__(self) -> int:
        return self.stop - self.start


class WorkerRecord(_Wire, frozen=True, kw_only=True):
    """How a worker announces itself. `instance` changes with every start, so that a restart is seen."""

    worker: Name
    instance: Name
    role: Role
    pipeline: Name
    subject: Subject
    """Root of the subjects that this instance listens on (see `subjects`)."""
    host: str = ""
    pid: Count = 0
    version: str = ""
    contract: int = CONTRACT_VERSION
    fingerprint: str = ""
    device: str = ""
    dtype: str = ""
    state: Literal["ready", "draining"] = "ready"
    started_at: Seconds = 0.0
    # stages only
    blocks: BlockRange | None = None
    num_layers: Count = 0
    kv_capacity_tokens: Count = 0
    max_batch_tokens: Count = 0
    """Most tokens of one microbatch that this worker computes."""
    device_id: str = ""
    """Names the very card or processor, whatever hosts are called: workers with the same one share it."""
    device_slots: PositiveCount = 1
    """Workers that the device computes for at the same time without one slowing the other: 1 on a card."""


class Heartbeat(_Wire, frozen=True, kw_only=True):
    """A sign of life, published every `heartbeat_s`; also carries what `status` shows."""

    worker: Name
    instance: Name
    role: Role
    state: Literal["ready", "draining"] = "ready"
    num_sessions: Count = 0
    kv_used_tokens: Count = 0
    num_microbatches: Count = 0
    num_tokens: Count = 0
    busy_s: Seconds = 0.0
    """Seconds spent computing since the start of this instance."""
    bubble_s: Seconds = 0.0
    """Seconds since then in which it held sessions and had nothing to compute."""
    queue_s: Seconds = 0.0
    """Seconds that microbatches have waited here, added up."""


# --- the activation contract ----------------------------------------------------------------------------------------


class TensorSpec(_Wire, frozen=True, kw_only=True):
    """One row of the tensor table. `offset` is 16-byte aligned; the bytes are little-endian and C-contiguous."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_.]{1,64}$")]
    dtype: WireDtype
    shape: Annotated[tuple[Count, ...], Meta(max_length=4)]
    offset: Count
    num_bytes: Count


class VisualSpan(_Wire, frozen=True, kw_only=True):
    """`count` visual tokens at `offset` (of the segment, or of the prompt), using visual rows from `row` on."""

    offset: Count
    count: PositiveCount
    row: Count


class Segment(_Wire, frozen=True, kw_only=True):
    """Tokens `[start, start + count)` of one session: many for a prefill chunk, one for a decode step."""

    session: SessionRef
    attempt: PositiveCount
    start: Count
    count: PositiveCount
    wants_token: bool = False
    """Whether the last stage samples the token that follows this segment."""
    visual: tuple[VisualSpan, ...] = ()


class SessionOpen(_Wire, frozen=True, kw_only=True):
    """Opens a session on every stage of the route."""

    session: Name
    attempt: PositiveCount
    num_kv_tokens: PositiveCount
    """Tokens of KV to reserve: prompt plus output limit."""
    num_prompt_tokens: PositiveCount
    sampling: SamplingSettings
    num_history_tokens: Count = 0
    """Tokens of this session in the tensor `history` (int32, sessions in the order of `opens`); 0 where not needed."""


class SessionClose(_Wire, frozen=True, kw_only=True):
    """Frees a session's KV and rows on every stage of the route."""

    session: SessionRef
    attempt: PositiveCount


class SessionFailure(_Wire, frozen=True, kw_only=True):
    """Why one session could not go on in this microbatch; the others are not touched."""

    session: SessionRef
    attempt: PositiveCount
    failure: Failure
    worker: str = ""


class StageTiming(_Wire, frozen=True, kw_only=True):
    """Where a microbatch's time went on one stage."""

    worker: Name
    queue_s: Seconds
    compute_s: Seconds


class Envelope(_Wire, frozen=True, kw_only=True):
    """One microbatch on its way to a stage.

    Tensors: `positions` int32 [3, n]; first stage: `token_ids` int32 [n]; later stages: `hidden` [n, hidden_size] in
    the model's dtype; `history` int32 [sum of num_history_tokens] (only with opens that need it). n is the sum of the
    segments' counts, in their order.
    """

    version: int = CONTRACT_VERSION
    pipeline: Name
    fingerprint: str
    epoch: Count
    microbatch: Count
    route: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=256)]
    """Subjects still to visit; the receiver's own stands first."""
    reply: Subject
    """Where the `MicrobatchResult` goes."""
    budget_s: Seconds
    """Seconds that remain for this microbatch. Relative, so that clocks of hosts need not agree."""
    trace: str = ""
    segments: tuple[Segment, ...] = ()
    opens: tuple[SessionOpen, ...] = ()
    closes: tuple[SessionClose, ...] = ()
    failures: tuple[SessionFailure, ...] = ()
    """Sessions that an earlier stage had to leave out; they are in `segments` no more."""
    timings: tuple[StageTiming, ...] = ()
    tensors: tuple[TensorSpec, ...] = ()


class SampledToken(_Wire, frozen=True, kw_only=True):
    """The token that follows a segment. `position` is its index in the session: start + count of that segment."""

    session: SessionRef
    attempt: PositiveCount
    position: Count
    token_id: TokenId
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()


class MicrobatchResult(_Wire, frozen=True, kw_only=True):
    """The one answer to every envelope: from the last stage, or from the stage that could not go on."""

    version: int = CONTRACT_VERSION
    pipeline: Name
    fingerprint: str
    epoch: Count
    microbatch: Count
    worker: Name
    tokens: tuple[SampledToken, ...] = ()
    failures: tuple[SessionFailure, ...] = ()
    failure: Failure | None = None
    """Set when the whole microbatch failed; then nothing of it counts."""
    timings: tuple[StageTiming, ...] = ()
    tensors: tuple[TensorSpec, ...] = ()


# --- vision ---------------------------------------------------------------------------------------------------------


class RowTarget(_Wire, frozen=True, kw_only=True):
    """A stage that needs visual rows: the first stage the merged embeddings, the owner of layer j those of level j."""

    subject: Subject
    embeds: bool = False
    levels: tuple[Annotated[int, Meta(ge=0, le=15)], ...] = ()


class PrepareRequest(_Wire, frozen=True, kw_only=True):
    """Asks a vision worker to turn a conversation into tokens, positions and visual rows."""

    version: int = CONTRACT_VERSION
    pipeline: Name
    fingerprint: str
    epoch: Count
    session: Name
    attempt: PositiveCount
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=1024)]
    targets: tuple[RowTarget, ...] = ()
    max_prompt_tokens: PositiveCount
    budget_s: Seconds
    tensors: tuple[TensorSpec, ...] = ()


class PreparedSession(_Wire, frozen=True, kw_only=True):
    """The answer. Tensors: `token_ids` int32 [n], `positions` int32 [3, n]. Rows are already at their stages."""

    version: int = CONTRACT_VERSION
    session: Name
    attempt: PositiveCount
    worker: Name
    failure: Failure | None = None
    num_tokens: Count = 0
    position_delta: int = 0
    """Position of the token with index c of a decode step, on all three axes, is c + position_delta."""
    visual: tuple[VisualSpan, ...] = ()
    fetch_s: Seconds = 0.0
    preprocess_s: Seconds = 0.0
    compute_s: Seconds = 0.0
    tensors: tuple[TensorSpec, ...] = ()


class RowDelivery(_Wire, frozen=True, kw_only=True):
    """Visual rows on their way to a stage. Tensors: `embeds` [r, H] and `deepstack.J` [r, H] in the model's dtype."""

    version: int = CONTRACT_VERSION
    pipeline: Name
    fingerprint: str
    epoch: Count
    session: Name
    attempt: PositiveCount
    tensors: tuple[TensorSpec, ...] = ()


class RowReceipt(_Wire, frozen=True, kw_only=True):
    """A stage's answer to a `RowDelivery`."""

    session: Name
    attempt: PositiveCount
    failure: Failure | None = None
    tensors: tuple[TensorSpec, ...] = ()


# --- control --------------------------------------------------------------------------------------------------------


class Hello(_Wire, frozen=True, kw_only=True):
    """A round trip that proves that the listener is subscribed; also fences: a stage adopts a higher epoch."""

    version: int = CONTRACT_VERSION
    pipeline: Name
    epoch: Count = 0
    tensors: tuple[TensorSpec, ...] = ()


class HelloReply(_Wire, frozen=True, kw_only=True):
    """A worker's answer to `Hello`."""

    record: WorkerRecord
    tensors: tuple[TensorSpec, ...] = ()


class DrainRequest(_Wire, frozen=True, kw_only=True):
    """Asks a worker to announce that it drains, finish the sessions that it has, and end. Asking again is harmless."""

    version: int = CONTRACT_VERSION
    pipeline: Name
    tensors: tuple[TensorSpec, ...] = ()


class DrainReply(_Wire, frozen=True, kw_only=True):
    """A worker's answer to `DrainRequest`: its record, which says `draining`."""

    record: WorkerRecord
    tensors: tuple[TensorSpec, ...] = ()
