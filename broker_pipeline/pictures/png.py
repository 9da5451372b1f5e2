"""PNG files by their chunks: the header, and what a decoder needs of the rest."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from broker_pipeline.errors import UnsupportedImageError
from broker_pipeline.pictures.stripped import MAX_PROFILE_BYTES, Stripped

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR, _PALETTE, _GREY_ALPHA, _COLOUR_ALPHA = 0, 2, 3, 4, 6
_DEPTHS = {
    _GREY: {1, 2, 4, 8, 16},
    _COLOUR: {8, 16},
    _PALETTE: {1, 2, 4, 8},
    _GREY_ALPHA: {8, 16},
    _COLOUR_ALPHA: {8, 16},
}
_SAMPLES = {_GREY: 1, _COLOUR: 3, _PALETTE: 1, _GREY_ALPHA: 2, _COLOUR_ALPHA: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced picture: first column, first row, and the steps between them."""
_NEEDED = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_INFLATED_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class PngHeader:
    """The chunk IHDR."""

    width: int
    height: int
    depth: int
    colour: int
    is_interlaced: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows, each with the one that names its filter."""
        if not self.is_interlaced:
            return self._rows(self.width, self.height)
        return sum(
            self._rows(-((left - self.width) // across), -((top - self.height) // down))
            for left, top, across, down in _PASSES
            if left < self.width and top < self.height
        )

    def _rows(self, width: int, height: int) -> int:
        return height * (1 + (width * self.depth * _SAMPLES[self.colour] + 7) // 8)


def png_header(content: bytes) -> PngHeader:
    """Read the header.

    Raises:
        UnsupportedImageError: it is not a PNG as the standard has it.
        ValueError: it is cut off or damaged.
    """
    length, kind = struct.unpack_from(">I4s", content, 8)
    if kind == b"CgBI":
        raise UnsupportedImageError("a PNG in Apple's own form (CgBI) is not decoded here")
    width, height, depth, colour, _, _, interlacing = struct.unpack_from(">IIBBBBB", content, 16)
    if (kind, length) != (b"IHDR", 13) or content[29:33] != struct.pack(">I", zlib.crc32(content[12:29])):
        raise ValueError("the PNG's header is damaged")
    if depth not in _DEPTHS.get(colour, ()):
        raise UnsupportedImageError(f"a PNG of colour type {colour} with {depth} bits does not exist")
    return PngHeader(width, height, depth, colour, bool(interlacing))


def chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and stop of each chunk's body, up to the end; the last one may be cut off."""
    place = len(_SIGNATURE)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        start, place = place + 8, place + 12 + length
        yield kind, start, min(start + length, len(content))
        if kind == b"IEND":
            return


def strip_png(content: bytes) -> Stripped:
    """Leave out every chunk that is not needed, without inflating any but a profile."""
    header = png_header(content)
    kept = [_SIGNATURE]
    profile = exif = None
    for kind, start, stop in chunks(content):
        if kind in _NEEDED:
            kept.append(content[start - 8 : stop + 4])
        elif kind == b"tRNS":
            kept.append(_chunk(kind, _key_as_decoded(content[start:stop], header)))
        elif kind == b"iCCP":
            profile = _inflate_profile(content[start:stop])
        elif kind == b"eXIf":
            exif = content[start:stop]
    return Stripped(b"".join(kept), profile, exif)


def has_every_row(content: bytes) -> bool:
    """Say whether the data of all rows are there."""
    inflate = zlib.decompressobj()
    missing = png_header(content).num_bytes
    for kind, start, stop in chunks(content):
        waiting = content[start:stop] if kind == b"IDAT" else b""
        while waiting and missing > 0:
            missing -= len(inflate.decompress(waiting, _INFLATED_AT_ONCE))
            waiting = inflate.unconsumed_tail
    return missing <= len(inflate.flush())


def _key_as_decoded(key: bytes, header: PngHeader) -> bytes:
    """Bring a transparent colour to the 8 bits that Pillow decodes the picture to, since it leaves it as it is."""
    if header.colour == _GREY and header.depth in {2, 4} and len(key) == 2:
        return struct.pack(">H", struct.unpack(">H", key)[0] * 255 // ((1 << header.depth) - 1))
    if header.colour == _COLOUR and header.depth == 16 and len(key) == 6:
        return bytes((0, key[0], 0, key[2], 0, key[4]))
    return key


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def _inflate_profile(body: bytes) -> bytes | None:
    """Return the profile of an iCCP chunk; None for one that is broken or too large."""
    _, _, packed = body.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None
