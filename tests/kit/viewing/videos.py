"""Video files whose frames tell their number by their brightness, with a red corner at the top left."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

SIZE = (96, 64)
_DARKEST, _STEP = 40, 7
KINDS = [
    ("mp4", "libx264"),
    ("mp4", "libx265"),
    ("mp4", "mpeg4"),
    ("mp4", "libsvtav1"),
    ("mov", "libx264"),
    ("webm", "libvpx"),
    ("webm", "libvpx-vp9"),
    ("webm", "libsvtav1"),
    ("matroska", "libx264"),
    ("avi", "mpeg4"),
]


def clip(
    container: str = "mp4",
    codec: str = "libx264",
    *,
    num_frames: int = 30,
    fps: int = 10,
    times: tuple[float, ...] = (),
) -> bytes:
    """Return a video of `num_frames`, ten a second, or one for each of `times`, in seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.bit_rate = 8_000_000  # or brightness is rounded by more than a frame
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(len(times) or num_frames):
            frame = av.VideoFrame.from_ndarray(_pixels(number), format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def plain_clip(colour: tuple[int, int, int], matrix: int, *, is_full: bool) -> bytes:
    """Return a video of one frame of one colour, given in Y, Cb and Cr of `matrix` (ISO/IEC 23091-2's number)."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        frame = av.VideoFrame(*SIZE, "yuv420p")
        for each in (stream.codec_context, frame):
            each.colorspace, each.color_range = matrix, 2 if is_full else 1
        for plane, value in zip(frame.planes, colour, strict=True):
            plane.update(bytes((value,)) * plane.buffer_size)
        output.mux([*stream.encode(frame), *stream.encode()])
    return file.getvalue()


def number_of(pixels: np.ndarray) -> int:
    """Return which frame this is, uint8 `[height, width, 3]`."""
    middle = pixels[pixels.shape[0] // 2 - 5 :, pixels.shape[1] // 2 - 5 :].mean()
    return round((float(middle) - _DARKEST) / _STEP)


def red_corner(pixels: np.ndarray) -> tuple[str, str]:
    """Return where the red corner is."""
    rows, columns = np.nonzero(pixels[..., 0].astype(int) - pixels[..., 1] > 100)
    return (
        "top" if rows.mean() < pixels.shape[0] / 2 else "bottom",
        "left" if columns.mean() < pixels.shape[1] / 2 else "right",
    )


def turned_clockwise(content: bytes) -> bytes:
    """Return an MP4 as a phone that is held upright writes it: its track header says that it is shown a quarter on."""
    header = content.index(b"tkhd") + 4
    place = header + 40
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    matrix = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter)
    return content[:place] + matrix + content[place + 36 :]


def _pixels(number: int) -> np.ndarray:
    pixels = np.full((SIZE[1], SIZE[0], 3), min(255, _DARKEST + _STEP * number), np.uint8)
    pixels[:20, :24] = (255, 0, 0)
    return pixels
