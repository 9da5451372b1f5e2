"""Pictures made small: upright, on white, without metadata, and never at any price."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from broker_pipeline.errors import ImageTooLargeError, MediaError, NotAnImageError
from gateway.viewing.thumbnails import EDGE, make_thumbnail


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def small(content: bytes) -> Image.Image:
    picture = Image.open(BytesIO(make_thumbnail(content)))
    assert picture.format == "JPEG"
    return picture


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_large_picture_keeps_its_shape(kind: str) -> None:
    thumbnail = small(encoded(Image.new("RGB", (1920, 960), "red"), kind))
    assert thumbnail.size == (EDGE, EDGE // 2)
    red, green, blue = thumbnail.getpixel((90, 40))
    assert red > 240
    assert max(green, blue) < 20


def test_a_small_one_is_not_made_larger() -> None:
    assert small(encoded(Image.new("L", (7, 5)), "PNG")).size == (7, 5)


def test_it_stands_upright_and_says_nothing_of_where_it_was_taken() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010F] = "a camera"
    thumbnail = small(encoded(Image.new("RGB", (400, 200)), "JPEG", exif=exif, comment=b"at home"))
    assert thumbnail.size == (EDGE // 2, EDGE)
    assert not thumbnail.getexif()
    assert "comment" not in thumbnail.info


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    assert small(encoded(Image.new(mode, (50, 50), 0), "PNG")).getpixel((25, 25)) == (255, 255, 255)


def test_a_picture_of_many_pixels_is_refused_by_its_header() -> None:
    with pytest.raises(ImageTooLargeError):
        make_thumbnail(encoded(Image.new("1", (8000, 8000)), "PNG"))


def test_formats_that_few_send_are_not_decoded() -> None:
    with pytest.raises(NotAnImageError):
        make_thumbnail(encoded(Image.new("L", (8, 8)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_was_cut_off_is_an_error_of_ours(kind: str, share: float) -> None:
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
    with pytest.raises(MediaError):
        make_thumbnail(whole[: int(share * len(whole))])
