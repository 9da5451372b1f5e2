"""Chooses frames of a video's file, as transformers does, and decodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from broker_pipeline.errors import TruncatedImageError, VideoTooLongError
from broker_pipeline.pictures.video import VideoHeader, opened_video

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

MIN_FRAMES = 4
"""A short video shows at least so many, as long as it has them."""
Pixels = NDArray[np.uint8]


def sampled_indices(header: VideoHeader, fps: float, max_frames: int) -> list[int]:
    """Return which frames are seen at `fps` of them a second, ascending: evenly from the first to the last."""
    wanted = int(header.num_frames / header.fps * fps)
    count = min(max(wanted, MIN_FRAMES), max_frames, header.num_frames)
    return [int(index) for index in np.linspace(0, header.num_frames - 1, count).round()]


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """Pixels of one frame, whatever the header says, and seconds for all of them."""

    max_pixels: int
    max_decode_s: float


def decoded_frames(
    content: bytes, indices: list[int], limits: DecodingLimits, clock: Callable[[], float]
) -> Iterator[tuple[float, Pixels]]:
    """Yield the second at which each of the frames `indices` is shown, and its pixels, uint8 `[height, width, 3]`.

    Raises:
        TruncatedImageError: it ends before the last of them, or is corrupt.
        VideoTooLongError: decoding takes longer than the limits say, by `clock`.
    """
    wanted, started, start = iter(indices), clock(), None
    index = next(wanted)
    with opened_video(content) as (container, stream):
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        for number, frame in enumerate(container.decode(stream)):
            if clock() - started > limits.max_decode_s:
                raise VideoTooLongError(f"the video takes longer than {limits.max_decode_s:g} s to decode")
            start = _second(frame, number, stream.average_rate) if start is None else start
            while number == index:
                yield max(0.0, _second(frame, number, stream.average_rate) - start), _upright(frame)
                index = next(wanted, -1)
            if index < 0:
                return
    raise TruncatedImageError("the video is truncated: it ends before its last frame")


def _second(frame: VideoFrame, number: int, rate: Any) -> float:
    return float(frame.time if frame.time is not None else number / rate)


def _upright(frame: VideoFrame) -> Pixels:
    pixels: Pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)) if frame.rotation % 360 else pixels
