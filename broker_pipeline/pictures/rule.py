"""The rule that a picture must keep to, as it is announced and as it is applied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.errors import (
    ImageShapeError,
    ImageTooLargeError,
    InvalidRequestError,
    MediaTooLargeError,
    NotAnImageError,
    NotAVideoError,
    VideoTooLongError,
)
from broker_pipeline.pictures.formats import DECODED_FORMATS, DECODES_VIDEOS

MAX_ASPECT_RATIO = 200
"""The model's image processor refuses what is longer than this in one direction."""
MAX_FRAMES = 768

Positive = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """Format and size in pixels, as a picture's header announces them."""

    format: str
    width: int
    height: int


class PictureRule(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture may be at most. Errors of its checks name `field`, the picture's place in a request."""

    formats: tuple[str, ...] = DECODED_FORMATS
    """Of an animation the first frame is used."""
    max_bytes: Positive = 32 * 2**20
    max_pixels: Positive = 100_000_000
    max_aspect_ratio: Positive = MAX_ASPECT_RATIO
    max_frames: Positive = MAX_FRAMES
    """Frames of one video; each is a picture."""
    takes_video_files: bool = DECODES_VIDEOS
    max_video_bytes: Positive = 64 * 2**20
    """Of a video that is one file."""
    max_video_s: Annotated[float, Meta(gt=0)] = 600.0
    max_resized_pixels: Positive | None = None
    """Most that a job may have a picture resized to, what a vision worker has memory for; None where none says so."""
    max_resized_video_pixels: Positive | None = None
    """Most that a job may have a video resized to, all frames together."""

    def check_bytes(self, num_bytes: int, field: str | None = None) -> None:
        """Raise `MediaTooLargeError` for a file that is too long."""
        if num_bytes > self.max_bytes:
            raise MediaTooLargeError(
                f"the file has {num_bytes} bytes; at most {self.max_bytes} are accepted", field=field
            )

    def check_format(self, name: str, field: str | None = None) -> None:
        """Raise `NotAnImageError` for a picture in a format that is not accepted."""
        if name not in self.formats:
            hint = " (HEIC needs the extra `heic` at gateways and vision workers)" if name == "HEIC" else ""
            raise NotAnImageError(f"a {name} is not accepted, only {', '.join(self.formats)}{hint}", field=field)

    def check_frames(self, num_frames: int, field: str | None = None) -> None:
        """Raise `ImageTooLargeError` for a video of too many frames."""
        if num_frames > self.max_frames:
            raise ImageTooLargeError(
                f"the video has {num_frames} frames; at most {self.max_frames} are accepted", field=field
            )

    def check_video_file(self, num_bytes: int, field: str | None = None) -> None:
        """Raise `NotAVideoError` where no video files are taken, or `MediaTooLargeError` for one that is too long."""
        if not self.takes_video_files:
            raise NotAVideoError("video files need the extra `video` at gateways and vision workers", field=field)
        if num_bytes > self.max_video_bytes:
            raise MediaTooLargeError(
                f"the video has {num_bytes} bytes; at most {self.max_video_bytes} are accepted", field=field
            )

    def check_duration(self, duration_s: float, field: str | None = None) -> None:
        """Raise `VideoTooLongError` for a video's file that plays too long."""
        if duration_s > self.max_video_s:
            raise VideoTooLongError(
                f"the video plays for {duration_s:.0f} s; at most {self.max_video_s:g} are accepted", field=field
            )

    def check_header(self, header: PictureHeader, field: str | None = None) -> None:
        """Raise `ImageTooLargeError` or `ImageShapeError` for a picture that is not accepted."""
        short, long = sorted((header.width, header.height))
        size = f"the image has {header.width} x {header.height} pixels"
        if short < 1:
            raise ImageShapeError(f"{size}, which is nothing to see", field=field)
        if short * long > self.max_pixels:
            raise ImageTooLargeError(f"{size}; at most {self.max_pixels} are accepted", field=field)
        if long > self.max_aspect_ratio * short:
            raise ImageShapeError(f"{size}; one side may be {self.max_aspect_ratio} times the other", field=field)


def strictest(rules: Sequence[PictureRule]) -> PictureRule:
    """Return the rule that accepts what each of `rules`, at least one, accepts."""
    return PictureRule(
        formats=tuple(name for name in rules[0].formats if all(name in rule.formats for rule in rules)),
        max_bytes=min(rule.max_bytes for rule in rules),
        max_pixels=min(rule.max_pixels for rule in rules),
        max_aspect_ratio=min(rule.max_aspect_ratio for rule in rules),
        max_frames=min(rule.max_frames for rule in rules),
        takes_video_files=all(rule.takes_video_files for rule in rules),
        max_video_bytes=min(rule.max_video_bytes for rule in rules),
        max_video_s=min(rule.max_video_s for rule in rules),
        max_resized_pixels=_least(rule.max_resized_pixels for rule in rules),
        max_resized_video_pixels=_least(rule.max_resized_video_pixels for rule in rules),
    )


def check_bounds(min_pixels: int | None, max_pixels: int | None, limit: int | None, field: str) -> None:
    """Raise `InvalidRequestError` for bounds on a resized picture that cross, or are beyond `limit`.

    `field` is where the picture is; the bound alongside it gets the blame, or the job's own.
    """
    where = f"{field.rpartition('.')[0]}." if "." in field else ""
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        message = f"min_pixels is {min_pixels}, more than max_pixels, {max_pixels}"
        raise InvalidRequestError(message, field=f"{where}min_pixels")
    name, largest = ("min_pixels", min_pixels) if max_pixels is None else ("max_pixels", max_pixels)
    if limit is not None and largest is not None and largest > limit:
        message = f"{largest} pixels; this model's workers resize to {limit} at most"
        raise InvalidRequestError(message, field=f"{where}{name}")


def _least(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
