"""PNG files of every colour type and depth, plain or interlaced, written sample by sample."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
_DEPTHS = {GREY: (1, 2, 4, 8, 16), COLOUR: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), COLOUR_ALPHA: (8, 16)}
_MODES = {GREY: "L", COLOUR: "RGB", GREY_ALPHA: "LA", COLOUR_ALPHA: "RGBA"}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class PngKind:
    """What the header says; `is_keyed` where a tRNS chunk makes the first pixel's colour transparent."""

    colour: int
    depth: int
    is_interlaced: bool
    is_keyed: bool

    def __str__(self) -> str:
        return f"colour{self.colour}-{self.depth}bits{'-adam7' * self.is_interlaced}{'-tRNS' * self.is_keyed}"


def all_kinds() -> Iterator[PngKind]:
    """Yield every kind."""
    for colour, depths in _DEPTHS.items():
        for depth in depths:
            for is_interlaced in (False, True):
                yield PngKind(colour, depth, is_interlaced, False)
                if colour not in {GREY_ALPHA, COLOUR_ALPHA}:
                    yield PngKind(colour, depth, is_interlaced, True)


def png_file(kind: PngKind, rgba: Image.Image, *more: bytes) -> bytes:
    """Return `rgba` as a file of `kind`, with the chunks `more` before its pixels."""
    samples, palette = _samples(kind, rgba)
    header = struct.pack(">IIBBBBB", *rgba.size, kind.depth, kind.colour, 0, 0, kind.is_interlaced)
    parts = [chunk(b"IHDR", header), *more]
    if palette:
        parts.append(chunk(b"PLTE", palette))
    if kind.is_keyed:
        first = samples[0, 0]
        keyed = b"\xff" * first[0] + b"\0" if palette else first.astype(">u2").tobytes()
        parts.append(chunk(b"tRNS", keyed))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [*parts, chunk(b"IDAT", zlib.compress(_rows(kind, samples))), chunk(b"IEND", b"")]
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _samples(kind: PngKind, rgba: Image.Image) -> tuple[np.ndarray, bytes]:
    """Return whole numbers `[height, width, samples]`, and the palette."""
    if kind.colour == PALETTE:
        image = rgba.convert("RGB").quantize(1 << kind.depth, dither=Image.Dither.NONE)
        return np.asarray(image)[..., None], bytes(image.getpalette()[: 3 << kind.depth])
    values = np.asarray(rgba.convert(_MODES[kind.colour])).reshape(rgba.height, rgba.width, -1)
    return np.rint(values / 255 * ((1 << kind.depth) - 1)).astype(np.uint16), b""


def _rows(kind: PngKind, samples: np.ndarray) -> bytes:
    passes = _PASSES if kind.is_interlaced else ((0, 0, 1, 1),)
    return b"".join(
        b"\0" + _packed(kind.depth, row)
        for left, top, across, down in passes
        for row in samples[top::down, left::across]
        if len(row)
    )


def _packed(depth: int, row: np.ndarray) -> bytes:
    if depth >= 8:
        return row.astype(">u2" if depth == 16 else "u1").tobytes()
    flags = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(flags.astype(np.uint8)).tobytes()
