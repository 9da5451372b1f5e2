"""Decides what a request to `/v1/jobs` means: which conversation, with which images at which places. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import DEFAULT_PROMPT, PixelBounds, TextPart
from broker_pipeline.messages.sampling import MODEL_DEFAULTS
from broker_pipeline.pictures.rule import MAX_FRAMES
from gateway.intake.job_draft import (
    DEFAULT_FPS,
    DraftMessage,
    DraftPart,
    ImagePlace,
    JobDraft,
    Link,
    Source,
    VideoFilePlace,
    VideoPlace,
    add_links,
    check_media,
)
from gateway.intake.video_input import check_video_input
from gateway.schemas import ImageInput, JobRequest, MessageInput, TextInput, VideoInput
from gateway.settings import Limits


def draft_job(request: JobRequest, media: Sequence[Source], limits: Limits) -> JobDraft:
    """Check what types cannot, and lay out the conversation; `media` came alongside the request, in a form.

    Raises `InvalidRequestError`, or `ImageTooLargeError` for a video of too many frames, naming the field.
    """
    sources = [*media, *(Link(f"images[{index}]", url) for index, url in enumerate(request.images or ()))]
    sent_as: dict[str, str] = {}
    if request.messages is not None:
        messages = _conversation(request, request.messages, sources)
    else:
        messages = (*_instructions(request.system), _question(request, sources))
        sent_as = _names_of_question(request, sources)
    check_media(messages, sources, limits)
    _check_used(request, [type(part) for message in messages for part in message.content])
    return JobDraft(
        messages,
        tuple(sources),
        MODEL_DEFAULTS if request.sampling in (None, MODEL_DEFAULTS) else request.sampling,
        request.metadata or {},
        sent_as,
        priority=request.priority or "interactive",
    )


def _check_used(request: JobRequest, kinds: Sequence[type[DraftPart]]) -> None:
    """Raise `InvalidRequestError` for what is said of images, or of a form's videos, where there are none."""
    if ImagePlace not in kinds:
        _refuse(request, ("min_pixels", "max_pixels", "size"), "images, and the job has none; a video's own")
    if request.messages is not None or VideoFilePlace not in kinds:
        _refuse(request, ("fps", "max_frames"), "videos in a form, and the job has none; another's own")


def _refuse(request: JobRequest, names: Sequence[str], whose: str) -> None:
    for name in names:
        if getattr(request, name) is not None:
            reason = f"this is for {whose} stands next to its `url` in `messages`"
            raise InvalidRequestError(reason, field=name)


def _question(request: JobRequest, sources: Sequence[Source]) -> DraftMessage:
    prompt = request.prompt
    if prompt is None and not sources:
        raise InvalidRequestError("give at least one image, or a prompt", field="images")
    text = DEFAULT_PROMPT if prompt is None else _check_text(prompt, "prompt")
    places = (
        VideoFilePlace(index, request.fps or DEFAULT_FPS, request.max_frames or MAX_FRAMES)
        if source.is_video
        else ImagePlace(index, request.bounds)
        for index, source in enumerate(sources)
    )
    return DraftMessage("user", (*places, TextPart(text=text)))


def _instructions(system: str | None) -> tuple[DraftMessage, ...]:
    return () if system is None else (DraftMessage("system", (TextPart(text=_check_text(system, "system")),)),)


def _names_of_question(request: JobRequest, sources: Sequence[Source]) -> dict[str, str]:
    whole = sources[0].field.partition("[")[0] if request.prompt is None else "prompt"
    question = f"messages[{0 if request.system is None else 1}]"
    return {"messages": whole} | {f"{question}.content[{i}]": source.field for i, source in enumerate(sources)}


def _conversation(
    request: JobRequest, messages: tuple[MessageInput, ...], sources: list[Source]
) -> tuple[DraftMessage, ...]:
    for name in ("prompt", "system"):
        if getattr(request, name) is not None:
            raise InvalidRequestError(f"give either `{name}` or `messages`", field=name)
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
        return ImagePlace(add_links(sources, [Link(f"{path}.url", part.url)]), part.bounds.or_else(bounds))
    return _video(part, path, sources)


def _video(part: VideoInput, path: str, sources: list[Source]) -> VideoPlace | VideoFilePlace:
    check_video_input(part, path)
    fps = part.fps or DEFAULT_FPS
    if part.url is not None:
        source = add_links(sources, [Link(f"{path}.url", part.url, is_video=True)])
        return VideoFilePlace(source, fps, part.max_frames or MAX_FRAMES, part.bounds)
    start = add_links(sources, (Link(f"{path}.frames[{index}]", url) for index, url in enumerate(part.frames or ())))
    return VideoPlace(start, len(sources), fps, part.times or (), part.bounds)


def _check_text(text: str, path: str) -> str:
    if not text.strip():
        hint = "; leave it out for the default" if path == "prompt" else ""
        raise InvalidRequestError(f"the text is empty{hint}", field=path)
    return text
