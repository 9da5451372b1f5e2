"""Headers of the formats that Pillow reads without decoding: it is asked by format, and never the whole of `open`.

`Image.open` would apply one limit for the whole process, and warn instead of fail up to twice of it.
"""

from __future__ import annotations

import struct
import warnings
from importlib import import_module
from io import BytesIO

from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, Jpeg2KImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile

from broker_pipeline.errors import UnsupportedImageError

# Pillow warns of odd metadata, which nobody can act on. Set once for the process: pictures are read on several threads,
# where a temporary filter would leak from one into the other.
warnings.filterwarnings("ignore", module=r"PIL\.")

_CODESTREAM = b"\xff\x4f\xff\x51"
_DECODED_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}
_SIGNED = 2


def bmp_size(content: bytes) -> tuple[int, int]:
    """Return width and height."""
    return _size(BmpImagePlugin.BmpImageFile, content)


def gif_size(content: bytes) -> tuple[int, int]:
    """Return width and height, of an animation's screen."""
    return _size(GifImagePlugin.GifImageFile, content)


def avif_size(content: bytes) -> tuple[int, int]:
    """Return width and height."""
    return _size(AvifImagePlugin.AvifImageFile, content)


def heic_size(content: bytes) -> tuple[int, int]:
    """Return width and height. Needs the extra `heic`."""
    return _size(import_module("pi_heif.as_plugin").HeifImageFile, content)


def jpeg_2000_size(content: bytes) -> tuple[int, int]:
    """Return width and height; those of the container and of what it contains must agree.

    Raises:
        UnsupportedImageError: samples that have a sign, or more than 16 bits.
    """
    size = _size(Jpeg2KImagePlugin.Jpeg2KImageFile, content)
    start = content.index(_CODESTREAM) + len(_CODESTREAM) + 4
    right, bottom, left, top = struct.unpack_from(">4I", content, start)
    (num_samples,) = struct.unpack_from(">H", content, start + 32)
    for depth in content[start + 34 : start + 34 + 3 * num_samples : 3]:
        if depth > 15:
            raise UnsupportedImageError(
                f"a JPEG 2000 of {(depth & 127) + 1} bits{' with sign' * (depth >> 7)} is not decoded here"
            )
    if size != (right - left, bottom - top):
        raise ValueError(f"the container says {size}, the picture {(right - left, bottom - top)}")
    return size


def tiff_size(content: bytes) -> tuple[int, int]:
    """Return width and height.

    Raises:
        UnsupportedImageError: samples or a compression that are not decoded here; their names are those of the tags.
    """
    directory = _tiff_directory(content)
    tile_pixels = directory.get(TiffImagePlugin.TILEWIDTH, 1) * directory.get(TiffImagePlugin.TILELENGTH, 1)
    if directory.get(TiffImagePlugin.COMPRESSION, 1) not in _DECODED_COMPRESSIONS or _SIGNED in directory.get(
        TiffImagePlugin.SAMPLEFORMAT, ()
    ):
        raise UnsupportedImageError(f"{_tiff_name(directory)} is not decoded here")
    try:
        size = _size(TiffImagePlugin.TiffImageFile, content)
    except SyntaxError as error:
        raise UnsupportedImageError(f"{_tiff_name(directory)} is not decoded here") from error
    if tile_pixels > 2 * size[0] * size[1] + 2**20:
        raise ValueError(f"its tiles have {tile_pixels} pixels")
    return size


def _tiff_directory(content: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    directory = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if b"+" in content[2:4] else 8])
    file, first = BytesIO(content), directory.next
    file.seek(first)
    directory.load(file)
    if directory.next == first:  # Pillow stops at what it cannot read
        raise ValueError("its directory is cut off")
    return directory


def _tiff_name(directory: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    """Name the kind of TIFF by the tags that make it up."""
    names = {
        "bits": TiffImagePlugin.BITSPERSAMPLE,
        "samples": TiffImagePlugin.SAMPLESPERPIXEL,
        "sample format": TiffImagePlugin.SAMPLEFORMAT,
        "extra samples": TiffImagePlugin.EXTRASAMPLES,
        "photometric interpretation": TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
        "compression": TiffImagePlugin.COMPRESSION,
    }
    return f"a TIFF with {', '.join(f'{name} {directory[tag]}' for name, tag in names.items() if tag in directory)}"


def _size(reader: type[ImageFile], content: bytes) -> tuple[int, int]:
    with reader(BytesIO(content)) as image:
        return image.size
