"""TIFF files of every kind that Pillow knows, uncompressed, written sample by sample."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

_SHORT, _LONG = 3, 4
_ASSOCIATED, _UNASSOCIATED = 1, 2


@dataclass(frozen=True)
class TiffKind:
    """A row of Pillow's table of what it opens."""

    order: bytes
    photometric: int
    sample_format: int
    fill_order: int
    bits: tuple[int, ...]
    extras: tuple[int, ...]

    def __str__(self) -> str:
        bits = "x".join(map(str, self.bits))
        extras = "-extra" + "".join(map(str, self.extras)) if self.extras else ""
        return (
            f"{self.order.decode()}-photo{self.photometric}-sf{self.sample_format}-fill{self.fill_order}-{bits}{extras}"
        )


def all_kinds() -> Iterator[TiffKind]:
    """Yield every kind."""
    for order, photometric, formats, fill_order, bits, extras in TiffImagePlugin.OPEN_INFO:
        yield TiffKind(order, photometric, formats[0], fill_order, bits, extras)


def tiff_file(kind: TiffKind, rgba: Image.Image) -> bytes:
    """Return `rgba` as a file of `kind`: its colours, its brightness, or its nearest of 2, 4, 16 or 256 colours."""
    samples, colour_map = _samples(kind, rgba)
    rows = [_packed(kind, row) for row in samples]
    return _file(kind, rgba.size, b"".join(rows), colour_map)


def _samples(kind: TiffKind, rgba: Image.Image) -> tuple[np.ndarray, bytes]:
    """Return samples `[height, width, samples]` from 0 to 1, or indices, and the palette of these."""
    rgb, colour_map = rgba.convert("RGB"), b""
    mode = {0: "L", 1: "L", 2: "RGB", 5: "CMYK", 6: "YCbCr" if len(kind.bits) > 1 else "L"}.get(kind.photometric)
    if kind.photometric == 3:
        num_colours = 1 << kind.bits[0]
        image = rgb.quantize(num_colours, dither=Image.Dither.NONE)
        palette = np.zeros((num_colours, 3), np.uint16)
        used = np.array(image.getpalette()).reshape(-1, 3)[:num_colours]
        palette[: len(used)] = used * 257
        colour_map = palette.T.astype(_dtype(kind, "u2")).tobytes()
        colours = np.asarray(image)[..., None] / (num_colours - 1)
    elif kind.photometric == 8:
        colours = np.asarray(_lab(rgb)) / 255
    else:
        colours = np.asarray(rgb.convert(mode)) / 255
    colours = colours.reshape(rgba.height, rgba.width, -1)
    if kind.photometric == 0:
        colours = 1 - colours
    alpha = np.asarray(rgba.getchannel("A"))[..., None] / 255
    if kind.extras[:1] == (_ASSOCIATED,):
        colours = colours * alpha
    missing = len(kind.bits) - colours.shape[2]
    return np.concatenate([colours, *[alpha] * missing], axis=2), colour_map


def _lab(rgb: Image.Image) -> np.ndarray:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return np.asarray(ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(rgb))


def _packed(kind: TiffKind, row: np.ndarray) -> bytes:
    bits = kind.bits[0]
    if kind.sample_format == 3:
        return row.astype(_dtype(kind, "f4")).tobytes()
    whole = np.rint(row * ((1 << bits) - 1)).astype(np.uint64)
    if bits >= 8 and bits != 12:
        packed = whole.astype(_dtype(kind, f"u{bits // 8}")).tobytes()
    else:
        flags = (whole.reshape(-1, 1) >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & 1
        packed = np.packbits(flags.astype(np.uint8)).tobytes()
    if kind.fill_order == 2:
        packed = np.packbits(np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()
    return packed


def _dtype(kind: TiffKind, name: str) -> str:
    return (">" if kind.order == TiffImagePlugin.MM else "<") + name


def _file(kind: TiffKind, size: tuple[int, int], data: bytes, colour_map: bytes) -> bytes:
    order = ">" if kind.order == TiffImagePlugin.MM else "<"
    count = len(kind.bits)
    tags: list[tuple[int, int, list[int]]] = [
        (256, _LONG, [size[0]]), (257, _LONG, [size[1]]), (258, _SHORT, list(kind.bits)), (259, _SHORT, [1]),
        (262, _SHORT, [kind.photometric]), (266, _SHORT, [kind.fill_order]), (273, _LONG, [0]), (277, _SHORT, [count]),
        (278, _LONG, [size[1]]), (279, _LONG, [len(data)]), (284, _SHORT, [1]),
    ]  # fmt: skip
    if colour_map:
        tags.append((320, _SHORT, list(np.frombuffer(colour_map, _dtype(kind, "u2")))))
    if kind.extras:
        tags.append((338, _SHORT, list(kind.extras)))
    tags.append((339, _SHORT, [kind.sample_format] * count))
    if kind.photometric == 6:
        tags.append((530, _SHORT, [1, 1]))
    tags.sort()
    place = 8 + 2 + 12 * len(tags) + 4
    entries, bodies = b"", b""
    total = sum(len(values) * (2 if kind_of == _SHORT else 4) for _, kind_of, values in tags)
    start = place + total + total % 2 + 64
    for tag, kind_of, values in tags:
        body = struct.pack(
            f"{order}{len(values)}{'H' if kind_of == _SHORT else 'I'}", *([start] if tag == 273 else values)
        )
        if len(body) <= 4:
            field = body.ljust(4, b"\0")
        else:
            field = struct.pack(f"{order}I", place + len(bodies))
            bodies += body
        entries += struct.pack(f"{order}HHI", tag, kind_of, len(values)) + field
    head = kind.order + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return (head + bodies).ljust(start, b"\0") + data
