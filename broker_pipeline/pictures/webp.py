"""WebP files by their chunks (RFC 9649): the size, and what a decoder needs of the rest."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from broker_pipeline.pictures.stripped import Stripped

_EXTENDED = b"VP8X"
_PROFILE, _EXIF, _XMP = 0x20, 0x08, 0x04
_NEEDED = {_EXTENDED, b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"}
_FRAMES = {b"ANMF", b"VP8 ", b"VP8L"}


def webp_size(content: bytes) -> tuple[int, int]:
    """Return width and height, of an animation's canvas. Raises `ValueError` or `struct.error` for a broken header."""
    kind = content[12:16]
    if kind == _EXTENDED:
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


def strip_webp(content: bytes) -> Stripped:
    """Leave out metadata, and every frame of an animation but the first."""
    kept: list[bytes] = []
    found: dict[bytes, bytes] = {}
    for kind, body in _chunks(content):
        if kind in _NEEDED and not (kind in _FRAMES and kind in found):
            kept.append(kind + struct.pack("<I", len(body)) + _unflagged(kind, body) + bytes(len(body) % 2))
        found.setdefault(kind, body)
    inner = b"WEBP" + b"".join(kept)
    return Stripped(b"RIFF" + struct.pack("<I", len(inner)) + inner, found.get(b"ICCP"), found.get(b"EXIF"))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of each chunk; the last one may be cut off."""
    place = 12
    while place + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, place)
        yield kind, content[place + 8 : place + 8 + length]
        place += 8 + length + length % 2


def _unflagged(kind: bytes, body: bytes) -> bytes:
    """Take back what the extended header says about metadata that are no longer there."""
    if kind != _EXTENDED or not body:
        return body
    return bytes((body[0] & ~(_PROFILE | _EXIF | _XMP),)) + body[1:]
