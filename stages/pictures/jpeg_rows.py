"""Whether a JPEG's data reach to its last block.

libjpeg fills what is missing with grey and says so to nobody. So where a picture ends in that grey, or without its end
marker, it is decoded again with noise behind its data: what changes was not there.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageChops, JpegImagePlugin

from broker_pipeline.pictures.stripped import Stripped

_END_OF_IMAGE = b"\xff\xd9"
_NOISE = bytes(range(1, 255)) * 16
_GREY = 128


def has_every_block(image: Image.Image, stripped: Stripped) -> bool:
    """Say whether `image`, decoded from `stripped`, is whole."""
    if stripped.has_end and not _ends_in_grey(image):
        return True
    longer = stripped.content.removesuffix(_END_OF_IMAGE) + _NOISE + _END_OF_IMAGE
    with JpegImagePlugin.JpegImageFile(BytesIO(longer)) as again:
        again.load()
        return ImageChops.difference(image, again).getbbox() is None


def _ends_in_grey(image: Image.Image) -> bool:
    # Of a progressive file a decoder smooths what has not arrived, so its grey is less even.
    tolerance = 40 if image.info.get("progressive") else 2
    last = image.crop((image.width - 1, image.height - 1, image.width, image.height)).tobytes()
    return all(abs(value - _GREY) <= tolerance for value in last)
