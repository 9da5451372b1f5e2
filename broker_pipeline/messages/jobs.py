"""Jobs: what a user asks for, and what becomes of it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from broker_pipeline.errors import Failure
from broker_pipeline.messages.base import (
    Count,
    Name,
    PositiveCount,
    Seconds,
    Sha256,
    TenantName,
    TokenId,
    WireReport,
    WireStruct,
)
from broker_pipeline.messages.sampling import MODEL_DEFAULTS, ObeyedSampling, SamplingParams, TokenLogprob
from broker_pipeline.messages.template_options import MAX_TOOL_CALLS, PLAIN_TEMPLATE, TemplateOptions, ToolCall
from broker_pipeline.pictures.rule import MAX_FRAMES

DEFAULT_PROMPT = "Describe this image."
"""What a gateway asks about a picture that comes without a prompt."""


class MediaRef(WireStruct, frozen=True, kw_only=True):
    """Bytes in the media store, or where `url` says: `object_name` finds them there, `sha256` proves them."""

    sha256: Sha256
    object_name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = "-"
    num_bytes: Count = 0
    """0 at a URL: all from `offset` on."""
    url: Annotated[str, Meta(max_length=4096)] = ""
    """Where they are below a media root of the vision workers; empty for what the media store has."""
    offset: Count = 0
    """Where they begin in the file at `url`."""


class TextPart(WireStruct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text in a chat message."""

    text: Annotated[str, Meta(max_length=2_000_000)]


class PixelBounds(WireStruct, frozen=True, kw_only=True):
    """Pixels that a picture, or all frames of a video together, are resized to; None leaves a bound to the model."""

    min_pixels: PositiveCount | None = None
    max_pixels: PositiveCount | None = None

    def or_else(self, other: "PixelBounds") -> "PixelBounds":
        """Return these bounds, and the other's where there are none."""
        if other == PixelBounds():
            return self
        return PixelBounds(
            min_pixels=self.min_pixels or other.min_pixels, max_pixels=self.max_pixels or other.max_pixels
        )


UNBOUNDED = PixelBounds()
"""The very object is left out of what is written."""


class ImagePart(WireStruct, frozen=True, kw_only=True, tag_field="type", tag="image"):
    """One image in a chat message."""

    media: MediaRef
    bounds: PixelBounds = UNBOUNDED


Pixels = Annotated[int, Meta(ge=1, le=2**31)]
Fps = Annotated[float, Meta(gt=0, le=240)]
NumFrames = Annotated[int, Meta(ge=1, le=MAX_FRAMES)]


class VideoPart(WireStruct, frozen=True, kw_only=True, tag_field="type", tag="video"):
    """One video in a chat message, given as its frames in order."""

    frames: Annotated[tuple[MediaRef, ...], Meta(min_length=1, max_length=MAX_FRAMES)]
    fps: Fps = 2.0
    times: Annotated[tuple[Seconds, ...], Meta(max_length=MAX_FRAMES)] = ()
    """When each frame is shown, ascending; without them, `fps` of them a second."""
    bounds: PixelBounds = UNBOUNDED

    @property
    def frame_times(self) -> tuple[float, ...]:
        """When each frame is shown, in seconds."""
        return self.times or tuple(index / self.fps for index in range(len(self.frames)))


class VideoFilePart(WireStruct, frozen=True, kw_only=True, tag_field="type", tag="video_file"):
    """One video in a chat message, given as a file; at most `max_frames` of it are seen, `fps` of them a second."""

    media: MediaRef
    fps: Fps = 2.0
    max_frames: NumFrames = MAX_FRAMES
    bounds: PixelBounds = UNBOUNDED


VisualPart = ImagePart | VideoPart | VideoFilePart


class ChatMessage(WireStruct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[tuple[TextPart | VisualPart, ...], Meta(max_length=1024)]
    """Nothing only beside `tool_calls`."""
    reasoning: Annotated[str, Meta(max_length=2_000_000)] = ""
    """What the assistant said before this answer, where its sender still knows."""
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=MAX_TOOL_CALLS)] = ()

    def __post_init__(self) -> None:
        if not self.content and not self.tool_calls:
            raise ValueError("Invalid field `content`: expected a part, or `tool_calls`")


class ResponseOrigin(WireStruct, frozen=True, kw_only=True):
    """What a job is as a response of OpenAI's API, for whoever shows it later, or goes on with it."""

    previous: Name | None = None
    """The job whose conversation it goes on with."""
    has_instructions: bool = False
    """Whether its first message is for this response alone."""
    echoed: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of the request, as it had them, that every answer says again."""


Priority = Literal["interactive", "batch"]
"""Somebody waits for it; or it may wait for those."""


class Flow(NamedTuple):
    """Jobs that wait in one line of the queue: those of a tenant with one priority."""

    priority: Priority = "interactive"
    tenant: str = ""


class Turn(NamedTuple):
    """Place of a job among those that wait: interactive ones first, then by tag."""

    is_batch: bool = False
    tag: float = 0.0


FIRST = Turn()


class JobSpec(WireStruct, frozen=True, kw_only=True):
    """A job as it waits in the queue: whole, so that it can run even if Redis has forgotten it."""

    job_id: Name
    created_at: Seconds
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=1024)]
    template: TemplateOptions = PLAIN_TEMPLATE
    sampling: SamplingParams = MODEL_DEFAULTS
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    num_retries: Count = 0
    """How often somebody has sent the job again after its end; tells a message of an earlier time from this one."""
    tenant: TenantName = ""
    """Whose it is; empty where the gateway knows no tenants."""
    sent_as: dict[str, str] = msgspec.field(default_factory=dict)
    """What the sender calls a part, by its path here, where these differ: `images[0]` of `messages[0].content[0]`."""

    response: ResponseOrigin | None = None
    priority: Priority = "interactive"

    @property
    def flow(self) -> Flow:
        """The line of the queue that it waits in."""
        return Flow(self.priority, self.tenant)

    def as_sent(self, failure: Failure) -> Failure:
        """Return a failure of the job that names a field as its sender wrote it."""
        field = self.sent_as.get(failure.field or "")
        return msgspec.structs.replace(failure, field=field) if field else failure

    @property
    def media_holder(self) -> str:
        """Under what name this sending of the job refers to its media: no earlier one can release them."""
        return f"{self.job_id}.{self.num_retries}" if self.num_retries else self.job_id

    def stored_media(self) -> tuple[MediaRef, ...]:
        """Return what the media store has of the job's media."""
        return tuple(ref for ref in self.media() if not ref.url)

    def with_media(self, refs: Mapping[str, MediaRef]) -> "JobSpec":
        """Return the job with its media found where `refs` (by sha256) says, and others where they were."""

        def moved(part: TextPart | VisualPart) -> TextPart | VisualPart:
            if isinstance(part, ImagePart | VideoFilePart):
                return msgspec.structs.replace(part, media=refs.get(part.media.sha256, part.media))
            if isinstance(part, VideoPart):
                return msgspec.structs.replace(part, frames=tuple(refs.get(each.sha256, each) for each in part.frames))
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
            if isinstance(part, ImagePart | VideoFilePart):
                refs.append(part.media)
            elif isinstance(part, VideoPart):
                refs.extend(part.frames)
        return tuple(refs)


JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL_STATUSES: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
FinishReason = Literal["stop", "length", "repetition", "cancelled", "error"]
StopReason = str | TokenId | None
"""The stop string or stop token that ended an output, of those that were asked for."""


class TokenEntry(WireReport, frozen=True, kw_only=True):
    """One committed token: its id, the text that became visible with it, its log-probabilities."""

    token_id: TokenId
    text: str = ""
    """Of the answer."""
    reasoning: str = ""
    """Of what a Thinking model says before that."""
    logprob: float | None = None
    spelling: bytes = b""
    """The bytes that it stands for, where log-probabilities were asked for."""
    top: tuple[TokenLogprob, ...] = ()
    choice: Count = 0
    """To which of several outputs it belongs."""
    num_prompt_tokens: Count | None = None
    """Of the job's first token: how long the prompt was."""


class Usage(WireReport, frozen=True, kw_only=True):
    """Token counts of one job."""

    num_prompt_tokens: Count
    num_visual_tokens: Count
    num_output_tokens: Count
    num_reasoning_tokens: Count = 0
    """Those of them that are reasoning, its tags included."""


class Choice(WireReport, frozen=True, kw_only=True):
    """One of several outputs."""

    text: str
    """The answer."""
    reasoning: str = ""
    """What a Thinking model said before that."""
    finish_reason: FinishReason
    stop_reason: StopReason = None
    num_output_tokens: Count
    num_reasoning_tokens: Count = 0
    """Those of them that are reasoning, its tags included."""


class JobResult(WireReport, frozen=True, kw_only=True):
    """What a finished job holds; `text`, `reasoning`, `finish_reason` and `stop_reason` are its first output's."""

    text: str
    reasoning: str = ""
    finish_reason: FinishReason
    stop_reason: StopReason = None
    usage: Usage
    num_attempts: PositiveCount = 1
    choices: tuple[Choice, ...] = ()
    """All outputs of a job that asked for several; those that it got to, where it was cancelled."""
    model: str | None = None
    """Name of the model that computed it."""
    fingerprint: Sha256 | None = None
    """That model's artifact."""
    sampling: ObeyedSampling | None = None
    """What was obeyed, as a job could ask for it: every default decided, the seed too."""
    max_tokens: Count | None = None
    """The output limit that counted."""


class PastEnd(WireReport, frozen=True, kw_only=True):
    """How a job had ended before it was sent again."""

    status: Literal["failed", "cancelled"]
    attempt: Count
    """Attempts that had been begun by then."""
    finished_at: Seconds
    error: Failure | None = None


class JobRecord(WireReport, frozen=True, kw_only=True):
    """A job as Redis knows it and as the gateway shows it."""

    job_id: Name
    status: JobStatus
    created_at: Seconds
    started_at: Seconds | None = None
    finished_at: Seconds | None = None
    attempt: Count = 0
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    result: JobResult | None = None
    error: Failure | None = None
    num_retries: Count = 0
    """How often somebody has sent the job again after its end."""
    failures: tuple[PastEnd, ...] = ()
    """How it had ended before that, the last ones, oldest first."""
    fingerprint: str | None = None
    """Artifact of the model that its tokens are of."""
    first_attempt: PositiveCount = 1
    """Attempt that the first of its tokens is of; more than 1 where it began again from token 0."""
    tenant: TenantName = ""
    """Whose it is; empty where the gateway knows no tenants."""


EventKind = Literal["queued", "started", "restarted", "tokens", "finished"]


class JobEvent(WireReport, frozen=True, kw_only=True):
    """One step of a job's life, for streaming clients. `index` counts the tokens committed before this event.

    `restarted` says that the job begins again from token 0: what was told of its tokens is void.
    """

    job_id: Name
    kind: EventKind
    index: Count = 0
    attempt: PositiveCount = 1
    """Attempt that its tokens were sampled in; gateways are told, clients are not."""
    first_attempt: PositiveCount = 1
    """As in the job's record; clients are told."""
    tokens: tuple[TokenEntry, ...] = ()
    record: JobRecord | None = None
