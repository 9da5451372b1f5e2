"""Looks at a picture's header, before anybody decodes it.

A file of a few kilobytes can announce hundreds of megapixels, so the size is read first, from the header alone.
Whatever kind of picture is not decoded here is refused here, by its name.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from PIL import Image

from broker_pipeline.errors import ImageTooLargeError, NotAnImageError, TruncatedImageError, UnsupportedImageError
from broker_pipeline.pictures import pillow_headers
from broker_pipeline.pictures.formats import FORMATS, format_of
from broker_pipeline.pictures.icon import icon_size
from broker_pipeline.pictures.jpeg import jpeg_size
from broker_pipeline.pictures.png import png_header
from broker_pipeline.pictures.pnm import pnm_header
from broker_pipeline.pictures.rule import PictureHeader, PictureRule
from broker_pipeline.pictures.webp import webp_size

_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "JPEG": jpeg_size,
    "PNG": lambda content: (png_header(content).width, png_header(content).height),
    "WebP": webp_size,
    "GIF": pillow_headers.gif_size,
    "BMP": pillow_headers.bmp_size,
    "TIFF": pillow_headers.tiff_size,
    "AVIF": pillow_headers.avif_size,
    "HEIC": pillow_headers.heic_size,
    "JPEG 2000": pillow_headers.jpeg_2000_size,
    "ICO": icon_size,
    "PNM": lambda content: (pnm_header(content).width, pnm_header(content).height),
}
# What header readers raise on bytes that end early or make no sense: those who wrote them have words for it, Python's
# own are about programs, also where Pillow passes them on. Pillow's assert what they expect of a file.
_IN_WORDS = (OSError, SyntaxError, ValueError)
_HEADER_ERRORS = (
    *_IN_WORDS,
    TypeError,
    LookupError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RuntimeError,
)
_UNSUPPORTED = re.compile("unsupported|unknown|unable|cannot handle|not supported", re.IGNORECASE)


def check_picture(content: bytes, rule: PictureRule, *, field: str | None = None) -> PictureHeader:
    """Read the header of a picture and hold it to the rule.

    Raises `MediaTooLargeError`, `NotAnImageError`, `UnsupportedImageError`, `TruncatedImageError`,
    `ImageTooLargeError` or `ImageShapeError`, each with `field`.
    """
    rule.check_bytes(len(content), field)
    rule.check_format(_format_of(content, field), field)
    header = read_header(content, field=field)
    rule.check_header(header, field)
    return header


def read_header(content: bytes, *, field: str | None = None) -> PictureHeader:
    """Read format and size from a picture's first bytes without decoding anything."""
    name = _format_of(content, field)
    try:
        width, height = _SIZES[name](content)
    except UnsupportedImageError as error:
        raise UnsupportedImageError(error.message, field=field) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the {name} announces more pixels than are ever decoded", field=field) from error
    except _HEADER_ERRORS as error:
        if _UNSUPPORTED.search(str(error)):
            raise UnsupportedImageError(f"the {name} cannot be read: {error}", field=field) from error
        raise TruncatedImageError(
            f"the {name} file ends inside its header, or its header is corrupt{why_in_words(error)}", field=field
        ) from error
    return PictureHeader(name, width, height)


def why_in_words(error: Exception) -> str:
    """Return what a reader of pictures says, behind a colon; nothing where only Python speaks, of a program."""
    return f": {error}" if isinstance(error.__cause__ or error, _IN_WORDS) and str(error) else ""


def _format_of(content: bytes, field: str | None) -> str:
    if not content:
        raise NotAnImageError("the file is empty", field=field)
    name = format_of(content)
    if name is None:
        raise NotAnImageError(f"the file is not an image in a supported format ({', '.join(FORMATS)})", field=field)
    return name
