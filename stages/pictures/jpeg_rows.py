"""Whether a JPEG's data reach to its last block.

libjpeg fills what is missing with grey and says so to nobody. So where a picture ends in that grey, or without its end
marker, it is decoded again with noise behind its data: what changes was not there.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageChops, JpegImagePlugin

from broker_pipeline.pictures.stripped import Stripped

_END_OF_IMAGE = b"\xff\xd9"
_NOISE = bytes((137 * number + 219) % 254 + 1 for number in range(254)) * 16
"""No markers; it begins with ones, as decoders fill up with zeros."""
_GREY = 128


def has_every_block(image: Image.Image, stripped: Stripped) -> bool:
    """Say whether `image`, decoded from `stripped`, is whole."""
    if stripped.has_end and not _ends_in_grey(image):
        return True
    data = stripped.content.removesuffix(_END_OF_IMAGE).rstrip(b"\xff")
    return all(_is_same(image, data + noise + _END_OF_IMAGE) for noise in (_noise(0), _noise(4)))


def _noise(first: int) -> bytes:
    """Return noise, and noise behind every restart marker: a decoder that waits for one reads on from there.

    It gives up where the marker after next comes first, so no one order is enough.
    """
    markers = (0xD0 + (first + number) % 8 for number in range(8))
    return _NOISE + b"".join(bytes((0xFF, marker)) + _NOISE for marker in markers)


def _is_same(image: Image.Image, content: bytes) -> bool:
    with JpegImagePlugin.JpegImageFile(BytesIO(content)) as again:
        again.load()
        return ImageChops.difference(image, again).getbbox() is None


def _ends_in_grey(image: Image.Image) -> bool:
    # Of a progressive file a decoder smooths what has not arrived, so its grey is less even.
    tolerance = 40 if image.info.get("progressive") else 2
    last = image.crop((image.width - 1, image.height - 1, image.width, image.height)).tobytes()
    return all(abs(value - _GREY) <= tolerance for value in last)
