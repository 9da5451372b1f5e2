"""Bytes of a picture to RGB pixels, within limits.

A few kilobytes can decode to gigabytes, so the size is read from the header and checked before anything is decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from broker_pipeline.errors import (
    ImageShapeError,
    ImageTooLargeError,
    MediaTooLargeError,
    NotAnImageError,
    TruncatedImageError,
)

# Pillow warns of large pictures, which are judged here, and of odd metadata, which nobody can act on. Set once for the
# process: decoding runs on several threads, where a temporary filter would leak from one into the other.
warnings.filterwarnings("ignore", module=r"PIL\.")

_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is decoded here, and what is refused.

    `formats` are Pillow's names; of animated pictures only the first frame is used.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 120_000_000
    max_aspect_ratio: float = 200.0
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


DEFAULT_IMAGE_LIMITS = ImageLimits()


def decode_image(content: bytes, limits: ImageLimits = DEFAULT_IMAGE_LIMITS) -> Tensor:
    """The picture's pixels, uint8 `[3, height, width]`, upright as its EXIF orientation says. Alpha is dropped.

    Raises:
        MediaTooLargeError: more bytes than are accepted.
        NotAnImageError: not a picture, or in a format that is not accepted.
        ImageTooLargeError: the header announces more pixels than are accepted.
        ImageShapeError: one side is more than `max_aspect_ratio` times the other.
        TruncatedImageError: the file ends too early or is corrupt.
    """
    if len(content) > limits.max_bytes:
        raise MediaTooLargeError(f"the image has {len(content)} bytes; at most {limits.max_bytes} are accepted")
    with _open(content, limits) as image:
        _check_size(image, limits)
        return _pixels(_decode(image))


def _open(content: bytes, limits: ImageLimits) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=limits.formats)
    except UnidentifiedImageError as error:
        names = ", ".join(limits.formats)
        raise NotAnImageError(f"not an image in one of the accepted formats: {names}") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the image has more than {limits.max_pixels} pixels ({error})") from error
    except _DECODING_ERRORS as error:
        raise TruncatedImageError(f"the image's header is damaged: {error}") from error


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(f"the image has {width} x {height} pixels; at most {limits.max_pixels} are decoded")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ImageShapeError(
            f"the image has {width} x {height} pixels; one side may be {limits.max_aspect_ratio:g} times the other"
        )


def _decode(image: Image.Image) -> Image.Image:
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey values instead of scaling them
            return image.point(lambda value: value * (1 / 256), "L").convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the image decodes to more than it announces: {error}") from error
    except MemoryError as error:
        raise ImageTooLargeError("the image does not fit into this worker's memory") from error
    except _DECODING_ERRORS as error:
        raise TruncatedImageError(f"the image is truncated or corrupt: {error}") from error


def _pixels(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)
