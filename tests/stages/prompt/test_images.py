"""Decoding pictures: what is refused, and with which error."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from broker_pipeline.errors import (
    ImageShapeError,
    ImageTooLargeError,
    MediaTooLargeError,
    NotAnImageError,
    TruncatedImageError,
)
from broker_pipeline.pictures.rule import PictureRule
from stages.prompt.images import decode_image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that announces any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_every_accepted_format_is_decoded(kind):
    pixels = decode_image(encoded(photo(), kind))
    assert pixels.shape == (3, 40, 60)
    assert pixels.dtype == torch.uint8


def test_pixels_are_exact_in_a_lossless_format():
    expected = torch.from_numpy(np.asarray(photo()).copy()).permute(2, 0, 1)
    assert torch.equal(decode_image(encoded(photo(), "PNG")), expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert decode_image(encoded(photo().convert(mode), kind)).shape == (3, 40, 60)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((10, 10), 0x8000, dtype=np.uint16))
    assert decode_image(encoded(grey, "PNG")).float().mean() == pytest.approx(128, abs=1)


def test_exif_orientation_is_obeyed():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode_image(encoded(photo(60, 40), "JPEG", exif=exif)).shape == (3, 60, 40)


def test_of_an_animation_the_first_frame_is_used():
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    pixels = decode_image(encoded(first, "GIF", save_all=True, append_images=[second]))
    assert pixels[0].float().mean() > 250


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7 ..."])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(NotAnImageError):
        decode_image(content)


def test_formats_outside_the_list_are_refused():
    with pytest.raises(NotAnImageError, match="PNG"):
        decode_image(encoded(photo(), "BMP"), PictureRule(formats=("PNG", "JPEG")))
    with pytest.raises(NotAnImageError, match="not an image in a supported format"):
        decode_image(encoded(photo(), "TGA"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind, share):
    content = encoded(photo(200, 200), kind)
    with pytest.raises(TruncatedImageError):
        decode_image(content[: int(len(content) * share)])


def test_a_corrupt_file_is_refused():
    content = bytearray(encoded(photo(), "PNG"))
    content[60:80] = bytes(20)
    with pytest.raises(TruncatedImageError):
        decode_image(bytes(content))


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (12_000, 10_001), (60_000, 2_500)])
def test_a_bomb_is_refused_by_its_header(width, height):
    with pytest.raises(ImageTooLargeError):
        decode_image(png_header(width, height))


def test_the_bound_on_pixels_is_exact_and_adjustable():
    assert decode_image(encoded(photo(60, 40), "PNG"), PictureRule(max_pixels=2400)).shape == (3, 40, 60)
    with pytest.raises(ImageTooLargeError, match="60 x 40 pixels; at most 2399"):
        decode_image(encoded(photo(60, 40), "PNG"), PictureRule(max_pixels=2399))


def test_the_bound_on_bytes_comes_first():
    with pytest.raises(MediaTooLargeError):
        decode_image(b"x" * 101, PictureRule(max_bytes=100))


@pytest.mark.parametrize(("width", "height", "fine"), [(400, 2, True), (401, 2, False), (1, 201, False)])
def test_extreme_shapes_are_refused(width, height, fine):
    content = encoded(photo(width, height), "PNG")
    if fine:
        assert decode_image(content).shape == (3, height, width)
    else:
        with pytest.raises(ImageShapeError):
            decode_image(content)
