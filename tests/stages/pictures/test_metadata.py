"""Metadata never refuse a picture, and are not even inflated: broken, huge or unknown, the pixels are the same."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest

from broker_pipeline.pictures.header import read_header
from tests.kit.viewing.imagemagick import rgba_scene
from tests.kit.viewing.png_files import COLOUR, PngKind, chunk, png_file
from tests.kit.viewing.seen import encoded, require_like, seen

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # as in a process, see pictures.pillow_headers
MEGABYTES = zlib.compress(bytes(80_000_000), 9)
KIND = PngKind(COLOUR, 8, False, False)


def scene() -> np.ndarray:
    return np.asarray(rgba_scene().convert("RGB"))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + MEGABYTES),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + MEGABYTES),
        chunk(b"iCCP", b"icc\0\0" + MEGABYTES),
        chunk(b"iCCP", b"icc\0\0" + b"not deflated"),
        chunk(b"iCCP", b""),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(60_000), 9)) * 2000,  # more than Pillow's sum of texts
        chunk(b"tEXt", b"no end of the key"),
        chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        chunk(b"gAMA", b""),
        chunk(b"cHRM", b"\0"),
        chunk(b"tIME", b""),
        chunk(b"acTL", b""),
        chunk(b"quXx", bytes(1000)),
        chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0",  # a wrong checksum
    ],
    ids=lambda extra: f"{extra[4:8].decode()}-{len(extra)}",
)
def test_chunks_of_a_png_that_are_not_needed_are_passed_over(extra):
    content = png_file(KIND, rgba_scene(), extra)
    assert read_header(content).width == 64
    require_like(seen(content), scene(), most=0)


def test_a_text_behind_the_pixels_is_passed_over():
    content = png_file(KIND, rgba_scene())
    require_like(seen(content[:-12] + chunk(b"zTXt", b"Comment\0\0" + MEGABYTES) + content[-12:]), scene(), most=0)


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe1" + struct.pack(">H", 60_002) + b"Exif\0\0" + bytes(59_994),
        b"\xff\xe1\x00\x08Exif\0\0",
        b"\xff\xe2\x00\x12ICC_PROFILE\0\x02\x03x!",
        b"\xff\xed\x00\x20Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff" + bytes(8),
        b"\xff\xee\x00\x06Adob",
        b"\xff\xe0\x00\x05JFI",
        b"\xff\xfe\xff\xff" + b"c" * 65_533,
        (b"\xff\xe1\xff\xff" + b"http://ns.adobe.com/xap/1.0/\0".ljust(65_533, b"x")) * 30,
    ],
    ids=lambda segment: segment[4:10].hex(),
)
def test_segments_of_a_jpeg_that_are_not_needed_are_passed_over(segment):
    content = encoded(rgba_scene().convert("RGB"), "JPEG")
    require_like(seen(content[:2] + segment + content[2:]), seen(content), most=0)


@pytest.mark.parametrize("kind", [b"EXIF", b"XMP ", b"ICCP", b"quux"])
def test_chunks_of_a_webp_that_are_not_needed_are_passed_over(kind):
    content = encoded(rgba_scene(), "WEBP", lossless=True, exact=True, exif=b"Exif\0\0" + bytes(20))
    broken = content.replace(b"EXIF", kind)
    require_like(seen(broken), seen(encoded(rgba_scene(), "WEBP", lossless=True, exact=True)), most=0)


@pytest.mark.parametrize("tag", [270, 305, 306, 700, 33723, 34377, 34665, 34675, 34853, 50341])
@pytest.mark.parametrize("offset", [0, 2**31])
def test_tags_of_a_tiff_that_are_not_needed_are_passed_over(tag, offset):
    """Text, XMP, IPTC, EXIF, a profile, a place: of the type that fits, and of a length that does not."""
    buffer = io.BytesIO()
    rgba_scene().convert("RGB").save(buffer, "TIFF", tiffinfo={65000: b"x" * 100})
    content = bytearray(buffer.getvalue())
    entry = content.index(struct.pack("<H", 65000))
    content[entry : entry + 12] = struct.pack("<HHII", tag, 4 if tag in {34665, 34853} else 7, 10**6, offset)
    require_like(seen(bytes(content)), scene(), most=0)
