"""Headers of pictures: sizes are read without decoding, lies are found out, and the rule is kept."""

import random
import re
import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from broker_pipeline.errors import (
    ImageShapeError,
    ImageTooLargeError,
    MediaError,
    MediaTooLargeError,
    NotAnImageError,
    TruncatedImageError,
)
from broker_pipeline.pictures.header import check_picture, read_header, why_in_words
from broker_pipeline.pictures.rule import PictureHeader, PictureRule, strictest

RULE = PictureRule(max_bytes=1_000_000, max_pixels=100_000_000)
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # as in a process, see pictures.header


def encoded(image_format: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: object) -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, 90).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"])
def test_every_format_gives_its_size(image_format: str) -> None:
    assert check_picture(encoded(image_format), RULE, field="f") == PictureHeader(image_format, 40, 30)


@pytest.mark.parametrize(
    "content",
    [
        encoded("WebP", lossless=True),
        encoded("WebP", mode="RGBA"),
        encoded("WebP", mode="RGBA", lossless=True),
        encoded("WebP", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        encoded("WebP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    ],
    ids=["lossless", "alpha", "lossless-alpha", "animated", "extended"],
)
def test_every_kind_of_webp_gives_its_size(content: bytes) -> None:
    assert read_header(content, field="f") == PictureHeader("WebP", 40, 30)


def test_a_400_megapixel_png_of_a_few_bytes_is_refused() -> None:
    content = png_claiming(20_000, 20_000)
    assert len(content) < 100
    with pytest.raises(ImageTooLargeError, match="20000 x 20000") as caught:
        check_picture(content, RULE, field="images[0]")
    assert caught.value.field == "images[0]"


def test_just_the_allowed_number_of_pixels_passes() -> None:
    assert check_picture(png_claiming(10_000, 10_000), RULE, field="f").width == 10_000
    with pytest.raises(ImageTooLargeError):
        check_picture(png_claiming(10_001, 10_000), RULE, field="f")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%PDF-1.7", b"<svg/>", b"RIFF\0\0\0\0WAVE", b"\0" * 1000], ids=repr
)
def test_other_files_are_not_images(content: bytes) -> None:
    with pytest.raises(NotAnImageError):
        check_picture(content, RULE, field="f")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"])
def test_every_cut_of_a_file_is_typed(image_format: str) -> None:
    """However short a file is cut, the answer is a size or a typed error, and a header that is not whole is refused."""
    content = encoded(image_format)
    outcomes = []
    for length in range(len(content)):
        try:
            outcomes.append(read_header(content[:length], field="f"))
        except MediaError as error:
            outcomes.append(type(error))
    assert outcomes[0] is NotAnImageError
    assert TruncatedImageError in outcomes
    assert all(outcome in (NotAnImageError, TruncatedImageError) for outcome in outcomes[:16])
    sizes = {outcome for outcome in outcomes if isinstance(outcome, PictureHeader)}
    assert sizes <= {PictureHeader(image_format, 40, 30)}


def test_a_jpeg_whose_data_end_early_passes_here() -> None:
    """Whether the pixels are whole is found out where they are decoded."""
    content = encoded("JPEG", (400, 300))
    assert check_picture(content[: len(content) * 2 // 3], RULE, field="f").width == 400


def test_a_file_over_the_byte_limit() -> None:
    with pytest.raises(MediaTooLargeError):
        check_picture(b"\xff\xd8\xff" + bytes(1_000_000), RULE, field="f")


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (4020, 20)])
def test_sides_too_unequal(size: tuple[int, int]) -> None:
    with pytest.raises(ImageShapeError):
        check_picture(png_claiming(*size), RULE, field="f")


def test_sides_just_equal_enough() -> None:
    assert check_picture(png_claiming(4000, 20), RULE, field="f").width == 4000


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageShapeError, match=f"^the image has {size[0]} x {size[1]} pixels, which is nothing to see$"):
        check_picture(png_claiming(*size), RULE, field="f")


def test_an_empty_file_is_said_to_be_empty() -> None:
    with pytest.raises(NotAnImageError, match=r"^the file is empty$"):
        check_picture(b"", RULE, field="f")


FORMS = ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM", "AVIF"]
OF_PROGRAMS = re.compile(r"buffer|unpack|index|range|arg |object|NoneType|attribute|with  is|DOS|\d{30}")


@pytest.mark.parametrize("image_format", FORMS)
def test_what_is_wrong_with_a_damaged_file_is_said_in_the_words_of_people(image_format: str) -> None:
    content, chance = encoded(image_format), random.Random(1)
    damaged = [content[:length] for length in range(min(len(content), 200))]
    for _ in range(300):
        altered = bytearray(content)
        for _ in range(3):
            altered[chance.randrange(2, min(len(content), 120))] = chance.choice((0, 1, 127, 255))
        damaged.append(bytes(altered))
    said = {_refusal(each) for each in damaged}
    assert len(said) > 1
    assert not [text for text in said if text and (OF_PROGRAMS.search(text) or len(text) > 400)]


def test_python_has_no_words_for_a_picture_also_where_pillow_passes_them_on() -> None:
    passed_on = SyntaxError("index out of range")
    passed_on.__cause__ = IndexError("index out of range")
    assert [why_in_words(error) for error in (passed_on, KeyError(256), ValueError())] == [""] * 3
    assert why_in_words(OSError("broken data stream")) == ": broken data stream"


def _refusal(content: bytes) -> str | None:
    try:
        check_picture(content, RULE)
    except MediaError as error:
        return error.message
    return None


def test_a_format_that_the_rule_leaves_out_is_refused() -> None:
    with pytest.raises(NotAnImageError, match="a BMP is not accepted, only PNG, JPEG"):
        check_picture(encoded("BMP"), PictureRule(formats=("PNG", "JPEG")))


def test_a_video_has_a_number_of_frames() -> None:
    PictureRule(max_frames=4).check_frames(4)
    with pytest.raises(ImageTooLargeError, match="5 frames; at most 4 are accepted") as caught:
        PictureRule(max_frames=4).check_frames(5, "messages")
    assert caught.value.field == "messages"


def test_the_strictest_rule_accepts_what_all_accept() -> None:
    small = PictureRule(max_bytes=10, formats=("PNG", "GIF"), max_frames=3, max_resized_pixels=9)
    flat = PictureRule(
        max_pixels=20, max_aspect_ratio=4, formats=("GIF", "PNG", "BMP"), takes_video_files=False, max_video_s=5
    )
    assert strictest([small]) == small
    assert strictest([small, flat]) == PictureRule(
        max_bytes=10,
        max_pixels=20,
        max_aspect_ratio=4,
        max_frames=3,
        formats=("PNG", "GIF"),
        takes_video_files=False,
        max_video_s=5,
        max_resized_pixels=9,
    )
