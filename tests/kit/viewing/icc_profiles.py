"""ICC profiles that are small, valid, and far from sRGB (ICC.1:2001)."""

from __future__ import annotations

import struct
from itertools import product

# Display P3's and a wide gamut's primaries in XYZ, adapted to D50: red, green, blue.
_WIDE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
_WHITE = (0.9642, 1.0, 0.8249)
# L*, a*, b* of paper and of the four inks, for a press that prints dull colours.
_PAPER = (100.0, 0.0, 0.0)
_INKS = ((60.0, -30.0, -45.0), (50.0, 65.0, 0.0), (88.0, -5.0, 80.0), (5.0, 0.0, 0.0))


def rgb_profile(gamma: float = 1.8) -> bytes:
    """A wide display with another gamma than sRGB's."""
    curve = _curve(gamma)
    colours = {name: _xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), _WIDE, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", colours | {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(gamma: float = 1.0) -> bytes:
    """Grey with another gamma than sRGB's."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A press whose inks mix as light does through filters."""
    grid = b"".join(_lab8(_printed(inks)) for inks in product((0, 1), repeat=4))
    ramp = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + grid + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _printed(inks: tuple[int, ...]) -> tuple[float, ...]:
    lightness, a, b = _PAPER
    for is_printed, ink in zip(inks, _INKS, strict=True):
        if is_printed:
            lightness, a, b = lightness * ink[0] / 100, (a + ink[1]) * 0.8, (b + ink[2]) * 0.8
    return lightness, a, b


def _lab8(colour: tuple[float, ...]) -> bytes:
    return bytes((round(colour[0] * 2.55), round(colour[1]) + 128, round(colour[2]) + 128))


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": name, b"wtpt": _xyz(_WHITE), b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    place = 128 + 4 + 12 * len(tags)
    table, bodies = struct.pack(">I", len(tags)), b""
    for tag, body in tags.items():
        table += struct.pack(">4sII", tag, place + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sIIIQI", place + len(bodies), b"lcms", 0x02400000, kind, space, connection,
        bytes(12), b"acsp", bytes(4), 0, 0, 0, 0, 0,
    ) + b"".join(map(_fixed, _WHITE))  # fmt: skip
    return header.ljust(128, b"\0") + table + bodies
