"""A small JPEG of a picture, for people to recognise it by. Pure, slow, and for a thread."""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import Image, ImageOps

from broker_pipeline.errors import UnsupportedImageError
from broker_pipeline.pictures.header import check_picture
from broker_pipeline.pictures.rule import PictureRule

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


def make_thumbnail(content: bytes, rule: PictureRule, edge: int) -> bytes:
    """Return a JPEG of at most `edge` x `edge` pixels without any metadata. Raises `MediaError`.

    `rule` says which formats are decoded, and up to which size.
    """
    check_picture(content, rule)
    try:
        with Image.open(BytesIO(content), formats=[name.upper() for name in rule.formats]) as picture:
            picture.thumbnail((edge, edge))
            return _jpeg(_opaque(ImageOps.exif_transpose(picture)))
    except _UNREADABLE as error:
        raise UnsupportedImageError("the picture cannot be made smaller: its data make no sense") from error


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, _WHITE), seen).convert("RGB")


def _jpeg(picture: Image.Image) -> bytes:
    target = BytesIO()
    picture.info.clear()  # Pillow writes a comment that it finds there
    picture.save(target, "JPEG", quality=75)
    return target.getvalue()
