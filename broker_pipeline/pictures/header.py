"""Looks at a picture's header, before anybody decodes it.

A file of a few kilobytes can announce hundreds of megapixels, so the size is read first, from the header alone, and by
Pillow's format classes directly: `Image.open` would apply one limit for the whole process, and warn instead of fail
up to twice of it.

Formats are told apart by their first bytes, never by a name or a header of HTTP.
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO

from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile

from broker_pipeline.errors import NotAnImageError, TruncatedImageError
from broker_pipeline.pictures.rule import FORMATS, PictureHeader, PictureRule

# Pillow warns of odd metadata, which nobody can act on. Set once for the process: pictures are read on several threads,
# where a temporary filter would leak from one into the other.
warnings.filterwarnings("ignore", module=r"PIL\.")

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# What Pillow's header readers raise on bytes that end early or make no sense.
_HEADER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, OverflowError)


def check_picture(content: bytes, rule: PictureRule, *, field: str | None = None) -> PictureHeader:
    """Read the header of a picture and hold it to the rule.

    Raises `MediaTooLargeError`, `NotAnImageError`, `TruncatedImageError`, `ImageTooLargeError` or `ImageShapeError`,
    each with `field`.
    """
    rule.check_bytes(len(content), field)
    header = read_header(content, field=field)
    rule.check_header(header, field)
    return header


def read_header(content: bytes, *, field: str | None = None) -> PictureHeader:
    """Read format and size from a picture's first bytes without decoding anything."""
    name = _sniff(content)
    if name is None:
        what = "is empty" if not content else "is not an image in a supported format"
        raise NotAnImageError(f"the file {what} ({', '.join(FORMATS)})", field=field)
    try:
        width, height = _webp_size(content) if name == "WebP" else _pillow_size(name, content)
    except _HEADER_ERRORS as error:
        raise TruncatedImageError(
            f"the {name} file ends inside its header, or its header is corrupt", field=field
        ) from error
    return PictureHeader(name, width, height)


def _sniff(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WebP"
    return next((name for signature, name in _SIGNATURES if content.startswith(signature)), None)


def _pillow_size(name: str, content: bytes) -> tuple[int, int]:
    with _READERS[name](BytesIO(content)) as image:
        return image.size


def _webp_size(content: bytes) -> tuple[int, int]:
    """Read a WebP's size by hand (RFC 9649): Pillow's reader would hand the whole file to the decoder."""
    kind = content[12:16]
    if kind == b"VP8X":
        body = content[24:30]
        if len(body) < 6:
            raise ValueError("short VP8X chunk")
        return 1 + int.from_bytes(body[:3], "little"), 1 + int.from_bytes(body[3:], "little")
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", content, 20)
        if signature != 0x2F:
            raise ValueError("wrong VP8L signature")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    start, width, height = struct.unpack_from("<3sHH", content, 23)
    if kind != b"VP8 " or start != b"\x9d\x01\x2a":
        raise ValueError("no frame")
    return width & 0x3FFF, height & 0x3FFF
