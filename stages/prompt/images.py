"""Bytes of a picture to RGB pixels.

A few kilobytes can decode to gigabytes, so the picture's header is held to the rule before anything is decoded.
"""

from __future__ import annotations

import io
import struct
import zlib

import torch
from PIL import Image, ImageOps
from torch import Tensor

from broker_pipeline.errors import ImageTooLargeError, TruncatedImageError
from broker_pipeline.pictures.header import check_picture
from broker_pipeline.pictures.rule import PictureRule

_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError)
DEFAULT_RULE = PictureRule()


def decode_image(content: bytes, rule: PictureRule = DEFAULT_RULE) -> Tensor:
    """Return the picture's pixels, uint8 `[3, height, width]`, upright as its EXIF orientation says. Alpha is dropped.

    Raises:
        MediaTooLargeError: more bytes than are accepted.
        NotAnImageError: not a picture, or in a format that is not accepted.
        ImageTooLargeError: the header announces more pixels than are accepted.
        ImageShapeError: one side is too many times the other.
        TruncatedImageError: the file ends too early or is corrupt.
    """
    header = check_picture(content, rule)
    image = _decode(content, header.format)
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def _decode(content: bytes, kind: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=(kind,)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey values instead of scaling them
                return image.point(lambda value: value * (1 / 256), "L").convert("RGB")
            return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the image decodes to more than Pillow allows: {error}") from error
    except MemoryError as error:
        raise ImageTooLargeError("the image does not fit into this worker's memory") from error
    except _DECODING_ERRORS as error:
        raise TruncatedImageError(f"the image is truncated or corrupt: {error}") from error
