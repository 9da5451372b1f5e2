"""Parts of a message as OpenAI's clients write them, and as vLLM and Qwen's own service extend them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.messages.jobs import Fps, NumFrames, PixelBounds, Pixels
from gateway.schemas import ImageUrl, Text, VideoUrl

LOW_DETAIL_PIXELS = 512 * 512
"""What `detail: low` means: at most so many pixels."""

Detail = Literal["auto", "low", "high", "original"]


class Lenient(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what clients send: they add fields of other servers, and expect these to be passed over."""


class TextContent(Lenient, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: Text


class InputText(TextContent, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """The same as the Responses API has it."""


class OutputText(TextContent, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """The same in an earlier answer."""


class ReasoningPart(TextContent, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    """What the model said before an earlier answer, as the Responses API has it."""


class Refusal(Lenient, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """An earlier answer that was a refusal."""

    refusal: Text


class ImageLocation(Lenient, frozen=True, kw_only=True):
    """Where an image is."""

    url: ImageUrl
    detail: Detail | None = None


class _Bounded(Lenient, frozen=True, kw_only=True):
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None


class ImageContent(_Bounded, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image."""

    image_url: ImageUrl | ImageLocation
    detail: Detail | None = None

    @property
    def url(self) -> tuple[str, str]:
        """Where the URL stands in the part, and the URL."""
        if isinstance(self.image_url, str):
            return "image_url", self.image_url
        return "image_url.url", self.image_url.url

    def bounds(self, limit: int | None) -> PixelBounds:
        """To how many pixels it is resized, where the model's workers resize to `limit` at most."""
        detail = self.detail if isinstance(self.image_url, str) else self.image_url.detail or self.detail
        low = min(LOW_DETAIL_PIXELS, limit or LOW_DETAIL_PIXELS) if detail == "low" else None
        return PixelBounds(min_pixels=self.min_pixels, max_pixels=self.max_pixels or low)


class InputImage(ImageContent, frozen=True, kw_only=True, tag_field="type", tag="input_image"):
    """The same as the Responses API has it."""


class VideoLocation(Lenient, frozen=True, kw_only=True):
    """Where a video is."""

    url: VideoUrl


class VideoContent(_Bounded, frozen=True, kw_only=True, tag_field="type", tag="video_url"):
    """A video: a file, or frames as `data:video/jpeg;base64,FRAME,FRAME`."""

    video_url: VideoUrl | VideoLocation
    fps: Fps | None = None
    max_frames: NumFrames | None = None

    @property
    def url(self) -> tuple[str, str]:
        """Where the URL stands in the part, and the URL."""
        if isinstance(self.video_url, str):
            return "video_url", self.video_url
        return "video_url.url", self.video_url.url

    @property
    def bounds(self) -> PixelBounds:
        """To how many pixels all its frames together are resized."""
        return PixelBounds(min_pixels=self.min_pixels, max_pixels=self.max_pixels)


ContentPart = TextContent | InputText | OutputText | ReasoningPart | Refusal | ImageContent | InputImage | VideoContent
Content = Text | Annotated[tuple[ContentPart, ...], Meta(max_length=1024)]
