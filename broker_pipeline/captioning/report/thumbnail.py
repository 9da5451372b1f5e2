"""A small JPEG of a picture, for the page to hold. Pure, slow, and for a thread.

Only the common formats are decoded, and only up to a size: the page is nothing to lose a run for.
"""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import Image, ImageOps

from broker_pipeline.errors import UnsupportedImageError
from broker_pipeline.pictures.header import check_picture
from broker_pipeline.pictures.rule import PictureRule

EDGE = 320
"""Of the longer side, in pixels."""
_RULE = PictureRule(formats=("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"), max_pixels=64_000_000)
_PILLOW_FORMATS = [name.upper() for name in _RULE.formats]
_WHITE = (255, 255, 255, 255)
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on bytes that end early or make no sense."""


def make_thumbnail(content: bytes) -> bytes:
    """Return a JPEG of at most `EDGE` x `EDGE` pixels without any metadata. Raises `MediaError`."""
    check_picture(content, _RULE)
    try:
        with Image.open(BytesIO(content), formats=_PILLOW_FORMATS) as picture:
            picture.thumbnail((EDGE, EDGE))
            return _jpeg(_opaque(ImageOps.exif_transpose(picture)))
    except _UNREADABLE as error:
        raise UnsupportedImageError("its data make no sense") from error


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, _WHITE), seen).convert("RGB")


def _jpeg(picture: Image.Image) -> bytes:
    target = BytesIO()
    picture.info.clear()  # Pillow writes a comment that it finds there
    picture.save(target, "JPEG", quality=80)
    return target.getvalue()
