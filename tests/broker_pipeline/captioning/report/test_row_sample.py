"""Which rows are looked at, and their pictures."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from broker_pipeline.captioning.report.row_sample import RowSample, make_thumbnail
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sources.item import broken
from broker_pipeline.errors import MediaError, UnreadableFileError
from tests.broker_pipeline.captioning.report.rows import failed, line, row
from tests.kit.pictures import picture, truncated_jpeg


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    content = BytesIO()
    image.save(content, image_format, **options)
    return content.getvalue()


def sample_of(rows: list[Row]) -> RowSample:
    sample = RowSample(size=3)
    for each in rows:
        sample.add(each)
    return sample


def test_the_same_rows_are_chosen_in_any_order() -> None:
    rows = [row(id=f"{number}.png") for number in range(200)]
    chosen = sample_of(rows).rows()
    assert len(chosen) == 3
    assert chosen == sample_of(rows[::-1]).rows()
    assert {each.id for each in chosen} != {"0.png", "1.png", "2.png"}


def test_only_pictures_of_the_chosen_are_read() -> None:
    num_read = 0

    def read() -> bytes:
        nonlocal num_read
        num_read += 1
        return picture(1)

    sample_of([row(id=f"{number}.png", read=read) for number in range(2000)])
    assert 3 <= num_read < 60


def test_an_item_that_comes_again_stands_there_once() -> None:
    first, again = row(line(caption="old")), row(line(caption="new"))
    (found,) = sample_of([first, again]).rows()
    assert found.answers[0].texts == ("new",)


def test_rows_without_any_answer_are_left_out() -> None:
    assert not sample_of([row(failed())]).rows()
    (found,) = sample_of([row(failed(question="a"), line(question="b"))]).rows()
    assert [(answer.is_caption, answer.texts, answer.remark) for answer in found.answers] == [
        (False, (), "out of memory"),
        (True, ("a red bicycle",), ""),
    ]


def test_what_a_guard_refused_is_told() -> None:
    (found,) = sample_of([row(line(caption=None, status="dropped", guard="repeats", uncleaned="a a a"))]).rows()
    assert (found.answers[0].texts, found.answers[0].remark) == (("a a a",), "repeats")


def test_a_picture_that_cannot_be_shown_has_a_reason() -> None:
    gone = Row(broken("gone.png", UnreadableFileError("it is gone")), {"caption": line("gone.png")})
    (found,) = sample_of([gone]).rows()
    assert (found.thumbnail, found.why_none) == ("", "not shown: it is gone")
    (found,) = sample_of([row(is_video=True)]).rows()
    assert (found.thumbnail, found.why_none) == ("", "a video")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"])
def test_a_thumbnail_is_small_and_has_the_shape(image_format: str) -> None:
    with Image.open(BytesIO(make_thumbnail(picture(3, 900, 450, image_format)))) as small:
        assert (small.format, small.size) == ("JPEG", (320, 160))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_all_kinds_of_pixels_are_shown(mode: str) -> None:
    content = encoded(Image.new(mode, (40, 20)), "TIFF" if mode == "CMYK" else "PNG")
    with Image.open(BytesIO(make_thumbnail(content))) as small:
        assert small.size == (40, 20)


def test_a_thumbnail_is_upright_and_says_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "secret"
    content = encoded(Image.new("RGB", (64, 32)), "JPEG", exif=exif, comment=b"secret")
    thumbnail = make_thumbnail(content)
    assert b"secret" in content
    assert b"secret" not in thumbnail
    with Image.open(BytesIO(thumbnail)) as small:
        assert small.size == (32, 64)


@pytest.mark.parametrize("content", [b"", b"no picture", truncated_jpeg(), picture(1)[:60], b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(MediaError):
        make_thumbnail(content)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    content = encoded(Image.new("1", (9000, 8000)), "PNG")
    with pytest.raises(MediaError, match="pixels"):
        make_thumbnail(content)


def test_a_thumbnail_is_a_jpeg_in_base64() -> None:
    (found,) = sample_of([row()]).rows()
    assert base64.b64decode(found.thumbnail, validate=True).startswith(b"\xff\xd8\xff")
