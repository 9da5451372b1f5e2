"""Headers of the formats that Pillow reads without decoding: it is asked by format, and never the whole of `open`.

`Image.open` would apply one limit for the whole process, and warn instead of fail up to twice of it.
"""

from __future__ import annotations

import struct
import warnings
from importlib import import_module
from io import BytesIO

from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, Image, Jpeg2KImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile

from broker_pipeline.errors import UnsupportedImageError

# Pillow warns of odd metadata, which nobody can act on. Set once for the process: pictures are read on several threads,
# where a temporary filter would leak from one into the other.
warnings.filterwarnings("ignore", module=r"PIL\.")

_CODESTREAM = b"\xff\x4f\xff\x51"
_DECODED_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}
_SIGNED, _PLANAR, _RAW = 2, 2, 1
_WITH_SIGN = 128
_LONGEST_VALUE = 40
"""Characters of a damaged tag's value that are shown."""
_BMP_FIELDS = (("<I", 14), ("<H", 28), ("<I", 30))
"""Bytes of the second header, bits of a pixel, compression: where they are, in any but the oldest kind."""
_BMP_WITH_ALPHA_MASK, _BITFIELDS = 56, 3


def bmp_size(content: bytes) -> tuple[int, int]:
    """Return width and height.

    Raises:
        UnsupportedImageError: 16 bits, some of them for transparency, which Pillow drops.
    """
    size = _size(BmpImagePlugin.BmpImageFile, content)
    header_bytes, depth, compression = (struct.unpack_from(form, content, at)[0] for form, at in _BMP_FIELDS)
    has_mask = header_bytes >= _BMP_WITH_ALPHA_MASK and compression == _BITFIELDS
    if depth == 16 and has_mask and any(content[66:70]):
        raise UnsupportedImageError("a BMP of 16 bits with transparency is not decoded here")
    return size


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
        UnsupportedImageError: samples that have a sign, or more bits than Pillow scales rightly (white becomes black).
    """
    size = _size(Jpeg2KImagePlugin.Jpeg2KImageFile, content)
    start = content.index(_CODESTREAM) + len(_CODESTREAM) + 4
    right, bottom, left, top = struct.unpack_from(">4I", content, start)
    (num_samples,) = struct.unpack_from(">H", content, start + 32)
    depths = content[start + 34 : start + 34 + 3 * num_samples : 3]
    if not depths:
        raise ValueError("the picture has no samples")
    bits = max((depth & 127) + 1 for depth in depths)
    if max(depths) >= _WITH_SIGN or bits > (16 if num_samples == 1 else 8):
        sign = " with sign" if max(depths) >= _WITH_SIGN else ""
        raise UnsupportedImageError(f"a JPEG 2000 of {num_samples} samples of {bits} bits{sign} is not decoded here")
    if num_samples == 2 and content.startswith(_CODESTREAM):
        raise UnsupportedImageError("a JPEG 2000 codestream does not say what the second of 2 samples is")
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
    if not _is_decoded(directory):
        raise UnsupportedImageError(f"{_tiff_name(directory)} is not decoded here")
    try:
        with TiffImagePlugin.TiffImageFile(BytesIO(content)) as image:
            _require_raw_mode(image)
            size = image.size
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


def _is_decoded(directory: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """Whether Pillow reads rightly what it says that it reads."""
    compression = directory.get(TiffImagePlugin.COMPRESSION, _RAW)
    if directory.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _PLANAR and compression == _RAW:
        return bool(max(directory.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) <= 8)
    return compression in _DECODED_COMPRESSIONS and _SIGNED not in directory.get(TiffImagePlugin.SAMPLEFORMAT, ())


def _require_raw_mode(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raise `SyntaxError` for samples that are in Pillow's table and that its decoder does not know."""
    for tile in image.tile[:1]:
        if tile.codec_name == "raw" and isinstance(tile.args, tuple):
            try:
                Image.frombytes(image.mode, (8, 1), bytes(128), "raw", tile.args[0])
            except ValueError as error:
                if "raw mode" in str(error):
                    raise SyntaxError(str(error)) from error


def _tiff_name(directory: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    """Name the kind of TIFF by the tags that make it up."""
    names = {
        "bits": TiffImagePlugin.BITSPERSAMPLE,
        "samples": TiffImagePlugin.SAMPLESPERPIXEL,
        "sample format": TiffImagePlugin.SAMPLEFORMAT,
        "extra samples": TiffImagePlugin.EXTRASAMPLES,
        "photometric interpretation": TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
        "fill order": TiffImagePlugin.FILLORDER,
        "planar configuration": TiffImagePlugin.PLANAR_CONFIGURATION,
        "compression": TiffImagePlugin.COMPRESSION,
    }
    said = [f"{name} {str(directory[tag])[:_LONGEST_VALUE]}" for name, tag in names.items() if tag in directory]
    return f"a TIFF with {', '.join(said)}" if said else "a TIFF that does not say what its samples are"


def _size(reader: type[ImageFile], content: bytes) -> tuple[int, int]:
    with reader(BytesIO(content)) as image:
        return image.size
