"""Decides what a request means: which conversation, with which images at which places. Pure.

A draft holds numbers in place of media, since media are not there yet when the request is checked:

    request ──draft_job──► JobDraft(messages with places 0, 1, …; sources 0, 1, …) ──fill(refs)──► ChatMessages
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import (
    DEFAULT_PROMPT,
    ChatMessage,
    ImagePart,
    MediaRef,
    PixelBounds,
    TextPart,
    VideoFilePart,
    VideoPart,
    VisualPart,
)
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.pictures.rule import MAX_FRAMES, PictureRule, check_bounds
from gateway.intake.data_url import is_data_url
from gateway.intake.video_input import check_video_input
from gateway.schemas import ImageInput, JobRequest, MessageInput, TextInput, VideoInput
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
    """A `data:`, `http:` or `https:` URL in the request; `field` is where."""

    field: str
    url: str
    is_video: bool = False


Source = Upload | Link


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

    role: Literal["system", "user", "assistant"]
    content: tuple[DraftPart, ...]


@dataclass(frozen=True, slots=True)
class JobDraft:
    """A checked request that lacks nothing but its media."""

    messages: tuple[DraftMessage, ...]
    sources: tuple[Source, ...]
    sampling: SamplingParams
    metadata: dict[str, str]
    sent_as: dict[str, str]
    """What the request calls parts of the conversation, by their paths in it, where these differ."""

    @property
    def is_fetched(self) -> bool:
        """Whether some of its media are elsewhere."""
        return any(isinstance(source, Link) and not is_data_url(source.url) for source in self.sources)


@dataclass(frozen=True, slots=True)
class Submission:
    """What a job is made of: its draft, the bytes of its sources in order, its idempotency key, whose it is."""

    draft: JobDraft
    contents: tuple[bytes, ...]
    idempotency_key: str | None
    tenant: str = ""


def draft_job(request: JobRequest, media: Sequence[Source], limits: Limits) -> JobDraft:
    """Check what types cannot, and lay out the conversation; `media` came alongside the request, in a form.

    Raises `InvalidRequestError`, or `ImageTooLargeError` for a video of too many frames, naming the field.
    """
    sources = [*media, *(Link(f"images[{index}]", url) for index, url in enumerate(request.images or ()))]
    sent_as: dict[str, str] = {}
    if request.messages is not None:
        messages = _conversation(request, request.messages, sources)
    else:
        messages = (_question(request, sources),)
        sent_as = _names_of_question(request.prompt, sources)
    if len(sources) > limits.max_images:
        raise InvalidRequestError(
            f"{len(sources)} images; a job may have {limits.max_images}", field=sources[limits.max_images].field
        )
    parts = [part for message in messages for part in message.content]
    for part in parts:
        _check_place(part, sources, limits.pictures)
    if not any(isinstance(part, ImagePlace) for part in parts):
        _refuse_bounds(request)
    return JobDraft(messages, tuple(sources), request.sampling or SamplingParams(), request.metadata or {}, sent_as)


def fill(draft: JobDraft, refs: Sequence[MediaRef]) -> tuple[ChatMessage, ...]:
    """Put the stored media, in the order of the draft's sources, into their places."""
    return tuple(
        ChatMessage(role=message.role, content=tuple(_fill_part(part, refs) for part in message.content))
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


def _refuse_bounds(request: JobRequest) -> None:
    """Raise `InvalidRequestError` for bounds of a job that has no image to keep to them."""
    for name in ("min_pixels", "max_pixels", "size"):
        if getattr(request, name) is not None:
            raise InvalidRequestError(
                "this is for images, and the job has none; a video's own stands next to its `url` in `messages`",
                field=name,
            )


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


def _question(request: JobRequest, sources: Sequence[Source]) -> DraftMessage:
    prompt = request.prompt
    if prompt is None and not sources:
        raise InvalidRequestError("give at least one image, or a prompt", field="images")
    text = DEFAULT_PROMPT if prompt is None else _check_text(prompt, "prompt")
    places = (
        VideoFilePlace(index) if source.is_video else ImagePlace(index, request.bounds)
        for index, source in enumerate(sources)
    )
    return DraftMessage("user", (*places, TextPart(text=text)))


def _names_of_question(prompt: str | None, sources: Sequence[Source]) -> dict[str, str]:
    whole = sources[0].field.partition("[")[0] if prompt is None else "prompt"
    return {"messages": whole} | {f"messages[0].content[{i}]": source.field for i, source in enumerate(sources)}


def _conversation(
    request: JobRequest, messages: tuple[MessageInput, ...], sources: list[Source]
) -> tuple[DraftMessage, ...]:
    if request.prompt is not None:
        raise InvalidRequestError("give either `prompt` or `messages`", field="prompt")
    if sources:
        raise InvalidRequestError("images stand inside `messages` where these are given", field=sources[0].field)
    if messages[-1].role != "user":
        raise InvalidRequestError("the last message must be the user's", field=f"messages[{len(messages) - 1}].role")
    return tuple(
        _message(message, f"messages[{index}]", sources, request.bounds) for index, message in enumerate(messages)
    )


def _message(message: MessageInput, path: str, sources: list[Source], bounds: PixelBounds) -> DraftMessage:
    path = f"{path}.content"
    if isinstance(message.content, str):
        return DraftMessage(message.role, (TextPart(text=_check_text(message.content, path)),))
    parts = tuple(_part(part, f"{path}[{index}]", sources, bounds) for index, part in enumerate(message.content))
    if message.role != "user" and not all(isinstance(part, TextPart) for part in parts):
        raise InvalidRequestError("only the user's messages may hold images and videos", field=path)
    return DraftMessage(message.role, parts)


def _part(
    part: TextInput | ImageInput | VideoInput, path: str, sources: list[Source], bounds: PixelBounds
) -> DraftPart:
    if isinstance(part, TextInput):
        return TextPart(text=_check_text(part.text, f"{path}.text"))
    if isinstance(part, ImageInput):
        return ImagePlace(_add(sources, [Link(f"{path}.url", part.url)]), part.bounds.or_else(bounds))
    return _video(part, path, sources)


def _video(part: VideoInput, path: str, sources: list[Source]) -> VideoPlace | VideoFilePlace:
    check_video_input(part, path)
    fps = part.fps or DEFAULT_FPS
    if part.url is not None:
        source = _add(sources, [Link(f"{path}.url", part.url, is_video=True)])
        return VideoFilePlace(source, fps, part.max_frames or MAX_FRAMES, part.bounds)
    start = _add(sources, (Link(f"{path}.frames[{index}]", url) for index, url in enumerate(part.frames or ())))
    return VideoPlace(start, len(sources), fps, part.times or (), part.bounds)


def _add(sources: list[Source], links: Iterable[Link]) -> int:
    start = len(sources)
    sources.extend(links)
    return start


def _check_text(text: str, path: str) -> str:
    if not text.strip():
        hint = "; leave it out for the default" if path == "prompt" else ""
        raise InvalidRequestError(f"the text is empty{hint}", field=path)
    return text
