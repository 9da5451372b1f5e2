"""Turns of a chat become turns of a job. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import TextPart
from broker_pipeline.pictures.rule import MAX_FRAMES
from gateway.api.openai.chat.request import Message
from gateway.api.openai.content_parts import (
    ContentPart,
    ImageContent,
    Refusal,
    TextContent,
    VideoContent,
)
from gateway.api.openai.tools import earlier_call
from gateway.intake.job_draft import (
    DEFAULT_FPS,
    DraftMessage,
    DraftPart,
    ImagePlace,
    Link,
    Source,
    VideoFilePlace,
    VideoPlace,
    add_links,
)
from gateway.settings import Limits

_VISUAL_ROLES = ("user", "tool")
_FRAMES = "data:video/jpeg;base64,"


class Conversation:
    """The turns of a draft under construction, and the media in them."""

    def __init__(self, limits: Limits) -> None:
        self._max_pixels = limits.pictures.max_resized_pixels
        self.messages: list[DraftMessage] = []
        self.sources: list[Source] = []
        self.sent_as: dict[str, str] = {}
        """What the request calls a part, by its path in the job, where that differs."""

    def add(self, message: Message, path: str, *, content: str | None = None) -> None:
        """Add a turn whose content stands in `content`; raises `InvalidRequestError` naming the field."""
        content = content or f"{path}.content"
        role = "system" if message.role == "developer" else message.role
        calls = tuple(
            earlier_call(call.function, f"{path}.tool_calls[{index}].function")
            for index, call in enumerate(message.tool_calls or ())
        )
        if role != "assistant" and calls:
            raise InvalidRequestError("only the assistant calls tools", field=f"{path}.tool_calls")
        parts = self._parts(message, content)
        reasoning = message.reasoning or message.reasoning_content or ""
        if not parts and not calls:
            if message.content is None and not reasoning:
                raise InvalidRequestError("the message is empty", field=content)
            parts = (TextPart(text=""),)
        self.messages.append(DraftMessage(role, parts, reasoning=reasoning, tool_calls=calls))

    def _parts(self, message: Message, path: str) -> tuple[DraftPart, ...]:
        content = message.content or ()
        if isinstance(content, str):
            return (TextPart(text=content),)
        if message.role not in _VISUAL_ROLES and any(isinstance(part, ImageContent | VideoContent) for part in content):
            raise InvalidRequestError("images and videos are for messages of the user and of tools", field=path)
        parts: list[DraftPart] = []
        for index, part in enumerate(content):
            sent = f"{path}[{index}]"
            if (place := self._part(part, sent)) is not None:
                own_path = f"messages[{len(self.messages)}].content[{len(parts)}]"
                if isinstance(part, ImageContent | VideoContent):
                    sent = f"{sent}.{part.url[0]}"
                if own_path != sent:
                    self.sent_as[own_path] = sent
                parts.append(place)
        return tuple(parts)

    def _part(self, part: ContentPart, path: str) -> DraftPart | None:
        if isinstance(part, TextContent | Refusal):
            text = part.text if isinstance(part, TextContent) else part.refusal
            return TextPart(text=text) if text else None
        field, url = part.url
        if isinstance(part, ImageContent):
            return ImagePlace(add_links(self.sources, [Link(f"{path}.{field}", url)]), part.bounds(self._max_pixels))
        if url.startswith(_FRAMES):
            return self._frames(part, f"{path}.{field}", url.removeprefix(_FRAMES).split(","))
        source = add_links(self.sources, [Link(f"{path}.{field}", url, is_video=True)])
        return VideoFilePlace(source, part.fps or DEFAULT_FPS, part.max_frames or MAX_FRAMES, part.bounds)

    def _frames(self, video: VideoContent, field: str, frames: Sequence[str]) -> VideoPlace:
        start = add_links(self.sources, (Link(field, f"data:image/jpeg;base64,{frame}") for frame in frames))
        return VideoPlace(start, len(self.sources), video.fps or DEFAULT_FPS, (), video.bounds)
