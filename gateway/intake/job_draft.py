"""A checked request that lacks its media yet, whichever API it came by. Pure.

A draft holds numbers in place of media, since media are not there yet when the request is checked:

    request ──an API──► JobDraft(messages with places 0, 1, …; sources 0, 1, …) ──fill(refs)──► ChatMessages
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import (
    ChatMessage,
    ImagePart,
    MediaRef,
    PixelBounds,
    Priority,
    ResponseOrigin,
    TextPart,
    VideoFilePart,
    VideoPart,
    VisualPart,
)
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.template_options import PLAIN_TEMPLATE, TemplateOptions, ToolCall
from broker_pipeline.pictures.rule import MAX_FRAMES, PictureRule, check_bounds
from gateway.intake.data_url import is_data_url
from gateway.settings import Limits

DEFAULT_FPS = 2.0


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes that came with the request; `field` is where."""

    field: str
    content: bytes
    is_video: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A `data:`, `http:`, `https:` or `file:` URL in the request; `field` is where."""

    field: str
    url: str
    is_video: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes of an earlier job, or below a media root; `field` is what of the request leads to them."""

    field: str
    ref: MediaRef
    is_video: bool = False


Source = Upload | Link | Stored


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """Where the image of source `source` goes."""

    source: int
    bounds: PixelBounds


@dataclass(frozen=True, slots=True)
class VideoPlace:
    """Where a video made of the sources `[start, stop)` goes."""

    start: int
    stop: int
    fps: float
    times: tuple[float, ...]
    bounds: PixelBounds


@dataclass(frozen=True, slots=True)
class VideoFilePlace:
    """Where the video of source `source` goes."""

    source: int
    fps: float = DEFAULT_FPS
    max_frames: int = MAX_FRAMES
    bounds: PixelBounds = field(default_factory=PixelBounds)


DraftPart = TextPart | ImagePlace | VideoPlace | VideoFilePlace


@dataclass(frozen=True, slots=True)
class DraftMessage:
    """A turn of the conversation, with places for its media."""

    role: Literal["system", "user", "assistant", "tool"]
    content: tuple[DraftPart, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class JobDraft:
    """A checked request that lacks nothing but its media."""

    messages: tuple[DraftMessage, ...]
    sources: tuple[Source, ...]
    sampling: SamplingParams
    metadata: dict[str, str]
    sent_as: dict[str, str]
    """What the request calls its fields, by their paths in the job, where these differ."""
    template: TemplateOptions = PLAIN_TEMPLATE
    response: ResponseOrigin | None = None
    priority: Priority = "interactive"

    def named(self, path: str) -> str:
        """Return what the request calls a field of the job."""
        return self.sent_as.get(path, path)

    @property
    def is_fetched(self) -> bool:
        """Whether some of its media are elsewhere."""
        return any(
            not source.ref.url if isinstance(source, Stored) else not is_data_url(source.url)
            for source in self.sources
            if not isinstance(source, Upload)
        )


Draft = TypeVar("Draft", bound=JobDraft)
Draft_co = TypeVar("Draft_co", bound=JobDraft, covariant=True)


@dataclass(frozen=True, slots=True)
class Submission(Generic[Draft_co]):
    """What a job is made of: its draft, its sources in order, its idempotency key, whose it is."""

    draft: Draft_co
    contents: tuple[bytes | MediaRef, ...]
    """Bytes, or where workers read them."""
    idempotency_key: str | None
    tenant: str = ""


def check_media(messages: Sequence[DraftMessage], sources: Sequence[Source], limits: Limits) -> None:
    """Check how many media there are, and the bounds of each.

    Raises `InvalidRequestError`, or `ImageTooLargeError` for a video of too many frames, naming the field.
    """
    if len(sources) > limits.max_images:
        raise InvalidRequestError(
            f"{len(sources)} images; a job may have {limits.max_images}", field=sources[limits.max_images].field
        )
    for part in (part for message in messages for part in message.content):
        _check_place(part, sources, limits.pictures)


def _check_place(part: DraftPart, sources: Sequence[Source], rule: PictureRule) -> None:
    if isinstance(part, ImagePlace):
        field, limit = sources[part.source].field, rule.max_resized_pixels
    elif isinstance(part, VideoPlace):
        field, limit = sources[part.start].field, rule.max_resized_video_pixels
        rule.check_frames(part.stop - part.start, field)
    elif isinstance(part, VideoFilePlace):
        field, limit = sources[part.source].field, rule.max_resized_video_pixels
    else:
        return
    check_bounds(part.bounds.min_pixels, part.bounds.max_pixels, limit, field)


def add_links(sources: list[Source], links: Iterable[Link]) -> int:
    """Add links to the sources of a draft; return the number of the first one."""
    start = len(sources)
    sources.extend(links)
    return start


def fill(draft: JobDraft, refs: Sequence[MediaRef]) -> tuple[ChatMessage, ...]:
    """Put the stored media, in the order of the draft's sources, into their places."""
    return tuple(
        ChatMessage(
            role=message.role,
            content=tuple(_fill_part(part, refs) for part in message.content),
            reasoning=message.reasoning,
            tool_calls=message.tool_calls,
        )
        for message in draft.messages
    )


def _fill_part(part: DraftPart, refs: Sequence[MediaRef]) -> TextPart | VisualPart:
    if isinstance(part, ImagePlace):
        return ImagePart(media=refs[part.source], bounds=part.bounds)
    if isinstance(part, VideoPlace):
        frames = tuple(refs[part.start : part.stop])
        return VideoPart(frames=frames, fps=part.fps, times=part.times, bounds=part.bounds)
    if isinstance(part, VideoFilePlace):
        return VideoFilePart(media=refs[part.source], fps=part.fps, max_frames=part.max_frames, bounds=part.bounds)
    return part
