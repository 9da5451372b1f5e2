"""Looks at a video's file: its container, its codec, its size, and when each of its frames is shown.

Nothing is decoded here: packets are counted. Needs PyAV, the extra `video`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from broker_pipeline.errors import NotAVideoError, PipelineError, TruncatedImageError, UnsupportedImageError
from broker_pipeline.pictures.rule import PictureHeader, PictureRule

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

    Packets = Sequence[Packet[Stream]]

# FFmpeg is told which container it is: some of those that it knows read other files and URLs.
_CONTAINERS = (
    ("mov", "MP4", re.compile(rb".{4}(?:ftyp|moov|mdat|wide|free|skip)", re.DOTALL)),
    ("matroska", "WebM", re.compile(rb"\x1a\x45\xdf\xa3")),
    ("avi", "AVI", re.compile(rb"RIFF.{4}AVI ", re.DOTALL)),
)
_MISSING_S = 0.5
"""What a file may announce beyond its last packet."""
_NAMES = ", ".join(name for _, name, _ in _CONTAINERS)


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """What a video's file says. `fps` are the frames of a second on average; frames need not be evenly spaced."""

    codec: str
    width: int
    height: int
    num_frames: int
    fps: float

    @property
    def duration_s(self) -> float:
        """Seconds that all frames are shown for."""
        return self.num_frames / self.fps


def check_video(content: bytes, rule: PictureRule, *, field: str | None = None) -> VideoHeader:
    """Read what a video's file says, and hold it to the rule. Call it on a thread: packets are counted.

    Raises `MediaTooLargeError`, `NotAVideoError`, `UnsupportedImageError`, `TruncatedImageError`, `VideoTooLongError`,
    `ImageTooLargeError` or `ImageShapeError`, each with `field`.
    """
    rule.check_video_file(len(content), field)
    with opened_video(content, field=field) as (container, stream):
        header = _header(container, stream, field)
    rule.check_header(PictureHeader(header.codec, header.width, header.height), field)
    rule.check_duration(header.duration_s, field)
    return header


@contextmanager
def opened_video(content: bytes, *, field: str | None = None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video's file, and explain what goes wrong in the block."""
    if not content:
        raise NotAVideoError("the file is empty", field=field)
    form = next((form for form, _, start in _CONTAINERS if start.match(content)), None)
    if form is None:
        raise NotAVideoError(f"the file is no video in a supported container ({_NAMES})", field=field)
    import av  # noqa: PLC0415 - an extra

    try:
        with av.open(BytesIO(content), "r", format=form, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise NotAVideoError("the file has no video, only other tracks", field=field)
            yield container, container.streams.video[0]
    except PipelineError:
        raise
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise TruncatedImageError(f"the video is truncated or corrupt: {reason}", field=field) from error


def _header(container: InputContainer, stream: VideoStream, field: str | None) -> VideoHeader:
    context = stream.codec_context
    if context is None or not context.width or not context.height:
        raise UnsupportedImageError("the video's codec is not decoded here", field=field)
    packets = [packet for packet in container.demux() if packet.size and not packet.is_discard]
    frames = [packet for packet in packets if packet.stream == stream]
    if not frames:
        raise TruncatedImageError("the video has no frames", field=field)
    if len(frames) < stream.frames:
        raise TruncatedImageError(f"the video has {len(frames)} of {stream.frames} frames", field=field)
    announced_s = (container.duration or 0) / 1_000_000
    if announced_s - _span_s(packets) > _MISSING_S:
        raise TruncatedImageError(
            f"the video says that it plays for {announced_s:.1f} s, and ends after {_span_s(packets):.1f}", field=field
        )
    return VideoHeader(context.name, context.width, context.height, len(frames), _fps(stream, frames))


def _fps(stream: VideoStream, frames: Packets) -> float:
    """Return the frames of a second on average: as the file says, unless its frames are spaced unevenly."""
    span_s, rate = _span_s(frames), float(stream.average_rate or 0)
    is_even = rate > 0 and abs(len(frames) / rate - span_s) <= 0.02 * span_s + 1 / rate
    return rate if is_even or (span_s <= 0 and rate > 0) else len(frames) / max(span_s, 0.001)


def _span_s(packets: Packets) -> float:
    """Return the seconds from the first packet's start to the last one's end."""
    times = [
        (float(start * packet.time_base), float((start + (packet.duration or 0)) * packet.time_base))
        for packet in packets
        if (start := packet.pts if packet.pts is not None else packet.dts) is not None
    ]
    return max(end for _, end in times) - min(start for start, _ in times) if times else 0.0
