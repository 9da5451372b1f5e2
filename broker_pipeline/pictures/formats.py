"""The formats of pictures: their names, how their files begin, and what such files are called.

Formats are told apart by their first bytes, never by a name or a header of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from PIL import features


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """One format: `signature` fits the first bytes of its files, `is_decoded` says whether this process can open it."""

    name: str
    signature: re.Pattern[bytes]
    endings: tuple[str, ...]
    is_decoded: Callable[[], bool] = _always


def _format(name: str, signature: bytes, endings: str, is_decoded: Callable[[], bool] = _always) -> PictureFormat:
    return PictureFormat(name, re.compile(signature, re.DOTALL), tuple(endings.split()), is_decoded)


def _box_of(*brands: bytes) -> bytes:
    """Return a pattern for the first box of an ISO media file that names one of `brands` among its first 16."""
    return b".{4}ftyp(?:.{4}){0,16}?(?:" + b"|".join(brands) + b")"


def _has(feature: str) -> Callable[[], bool]:
    return lambda: bool(features.check(feature))


_ALL = (
    _format("JPEG", rb"\xff\xd8\xff", ".jpg .jpeg .jpe .jfif"),
    _format("PNG", rb"\x89PNG\r\n\x1a\n", ".png .apng"),
    _format("WebP", rb"RIFF.{4}WEBP", ".webp", _has("webp")),
    _format("GIF", rb"GIF8[79]a", ".gif"),
    _format("BMP", rb"BM", ".bmp"),
    _format("TIFF", rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+", ".tif .tiff"),
    _format("AVIF", _box_of(b"avif", b"avis"), ".avif", _has("avif")),
    _format("HEIC", _box_of(b"hei[cxms]", b"hev[cxms]"), ".heic .heif .hif", lambda: find_spec("pi_heif") is not None),
    _format(
        "JPEG 2000",
        rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  \r\n\x87\n",
        ".jp2 .j2k .jpc .jpf .jpx .j2c",
        _has("jpg_2000"),
    ),
    _format("ICO", rb"\x00\x00\x01\x00[^\x00]", ".ico"),
    _format("PNM", rb"P[1-6fF][\s#]", ".pnm .pbm .pgm .ppm .pfm"),
)
FORMATS = tuple(each.name for each in _ALL)
DECODED_FORMATS = tuple(each.name for each in _ALL if each.is_decoded())
"""Those that this process can open: HEIC needs the extra `heic`."""
DECODES_VIDEOS = find_spec("av") is not None
"""Whether this process can open video files: they need the extra `video`."""
ENDINGS = frozenset(ending for each in _ALL for ending in each.endings)
"""How files of pictures are called, in lower case, with the dot."""


def format_of(content: bytes) -> str | None:
    """Return the name of the format that a file begins like."""
    start = content[:256]
    return next((each.name for each in _ALL if each.signature.match(start)), None)
