"""Makes a small JPEG of a picture, for people to recognise it by. Pure, slow, and for a thread.

Only the common formats are decoded, and only up to a size: a gateway is no place for more.
"""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import Image, ImageOps

from broker_pipeline.errors import UnsupportedImageError
from broker_pipeline.pictures.header import check_picture
from broker_pipeline.pictures.rule import PictureRule

EDGE = 192
"""Of the longer side, in pixels: twice what the page shows."""
_RULE = PictureRule(
    formats=("JPEG", "PNG", "WebP", "GIF", "BMP"), max_bytes=16 * 2**20, max_pixels=32_000_000, max_aspect_ratio=100
)
_PILLOW_FORMATS = [name.upper() for name in _RULE.formats]
_BACKGROUND = (255, 255, 255)
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
"""What Pillow raises on bytes that end early or make no sense."""


def max_picture_bytes() -> int:
    """Return how large a file may be to get a thumbnail."""
    return _RULE.max_bytes


def make_thumbnail(content: bytes) -> bytes:
    """Return a JPEG of at most `EDGE` x `EDGE` pixels without any metadata. Raises `MediaError`."""
    check_picture(content, _RULE)
    try:
        with Image.open(BytesIO(content), formats=_PILLOW_FORMATS) as picture:
            picture.thumbnail((EDGE, EDGE))
            upright = ImageOps.exif_transpose(picture)
            return _jpeg(_opaque(upright))
    except _UNREADABLE as error:
        raise UnsupportedImageError("the picture cannot be made smaller: its data make no sense") from error


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    seen = picture.convert("RGBA")
    below = Image.new("RGBA", seen.size, (*_BACKGROUND, 255))
    return Image.alpha_composite(below, seen).convert("RGB")


def _jpeg(picture: Image.Image) -> bytes:
    target = BytesIO()
    picture.save(target, "JPEG", quality=70)
    return target.getvalue()
