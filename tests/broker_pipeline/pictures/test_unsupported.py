"""Kinds of pictures that are not decoded are refused by their name, from the header alone."""

import re
import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from broker_pipeline.errors import NotAnImageError, UnsupportedImageError
from broker_pipeline.pictures.header import check_picture, read_header
from broker_pipeline.pictures.rule import PictureRule


def jpeg(marker: int = 0xC0, depth: int = 8, num_colours: int = 3) -> bytes:
    """Return a JPEG whose frame says something else."""
    buffer = BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    start = content.index(b"\xff\xc0")
    content[start + 1], content[start + 4], content[start + 9] = marker, depth, num_colours
    return bytes(content)


def png(kind: bytes = b"IHDR", depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG with another first chunk."""
    body = kind + struct.pack(">IIBBBBB", 40, 30, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (jpeg(depth=12), "a JPEG of 12 bits is not decoded here, only of 8"),
        (jpeg(marker=0xC3), "a lossless or hierarchical JPEG (frame 0xc3) is not decoded here"),
        (jpeg(marker=0xC5), "a lossless or hierarchical JPEG (frame 0xc5) is not decoded here"),
        (jpeg(num_colours=2), "a JPEG of 2 colours is not decoded here, only of 1, 3 or 4"),
        (png(kind=b"CgBI"), "a PNG in Apple's own form (CgBI) is not decoded here"),
        (png(depth=4), "a PNG of colour type 2 with 4 bits does not exist"),
    ],
)
def test_a_kind_is_refused_by_its_name(content: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageError, match=re.escape(name)) as caught:
        read_header(content, field="images[0]")
    assert caught.value.field == "images[0]"
    assert caught.value.code == "unsupported_image"


def test_a_heic_where_the_extra_is_missing_is_refused_with_the_way_out() -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    without = tuple(name for name in PictureRule().formats if name != "HEIC")
    with pytest.raises(NotAnImageError, match="HEIC needs the extra `heic` at gateways and vision workers"):
        check_picture(heic, PictureRule(formats=without))
