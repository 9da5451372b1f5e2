"""One rule for what counts as whole: the data of every row are there. End markers, and what follows, do not matter."""

from __future__ import annotations

import contextlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from broker_pipeline.errors import MediaError, TruncatedImageError
from broker_pipeline.pictures.rule import PictureRule
from tests.kit.viewing.imagemagick import needs_imagemagick, rgba_scene, write_scene
from tests.kit.viewing.png_files import COLOUR, PngKind, chunk, png_file
from tests.kit.viewing.seen import encoded, require_like, seen

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # as in a process, see pictures.pillow_headers
# Format, mode, how it is written, and how many of its last bytes are no row's data.
KINDS = [
    ("JPEG", "RGB", {}, 2),
    ("JPEG", "CMYK", {}, 2),
    ("JPEG", "RGB", {"progressive": True}, 2),
    ("JPEG", "L", {"restart_marker_blocks": 4}, 2),
    ("PNG", "RGBA", {}, 16),
    ("PNG", "P", {}, 16),
    ("WEBP", "RGBA", {}, 0),
    ("WEBP", "RGB", {"lossless": True}, 0),
    ("GIF", "P", {}, 2),
    ("BMP", "RGB", {}, 0),
    ("BMP", "RGBA", {}, 0),
    ("TIFF", "RGB", {}, 0),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}, 0),
    ("TIFF", "RGB", {"compression": "jpeg"}, 0),
    ("AVIF", "RGB", {}, 0),
    ("ICO", "RGBA", {"sizes": [(256, 192)]}, 16),
    ("ICO", "RGBA", {"sizes": [(256, 192)], "bitmap_format": "bmp"}, 0),
    ("JPEG2000", "RGB", {}, 2),
    ("JPEG2000", "L", {"no_jp2": True, "irreversible": True, "quality_layers": [20]}, 2),
    ("PPM", "RGB", {}, 0),
    ("PPM", "L", {}, 0),
]


def noisy_scene() -> Image.Image:
    """Return a larger scene that no format can make small, so that its file's last bytes are pixels."""
    pixels = np.asarray(rgba_scene().resize((256, 192))).astype(int)
    noise = np.random.default_rng(0).integers(-20, 20, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("kind", "mode", "options", "num_spare_bytes"), KINDS)
def test_a_picture_is_whole_when_its_rows_are(kind, mode, options, num_spare_bytes):
    content = encoded(noisy_scene().convert(mode), kind, **options)
    whole = seen(content)
    for num_missing in range(num_spare_bytes + 1):
        require_like(seen(content[: len(content) - num_missing]), whole, most=0)
    require_like(seen(content + b"and what a camera appends\xff\xd8\xff\xe0" * 99), whole, most=0)
    for share in (0.3, 0.6, 0.9, 0.97, 0.995):
        with pytest.raises(TruncatedImageError):
            seen(content[: int(len(content) * share)])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{}, {"restart_marker_blocks": 1}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}], ids=str
)
def test_a_jpeg_without_a_few_bytes_of_its_last_blocks_is_refused(mode, options):
    """Wherever between two restart markers, or in one of them, it was cut off."""
    content = encoded(rgba_scene().convert(mode), "JPEG", **options)
    for num_missing in range(4, 60):
        with pytest.raises(TruncatedImageError):
            seen(content[:-num_missing])


@needs_imagemagick
@pytest.mark.parametrize("num_missing", [1, 50, 200, 400])
def test_a_heic_that_is_cut_off_is_refused(num_missing, tmp_path):
    content = write_scene(tmp_path / "a.heic", "-alpha", "off")
    with pytest.raises(TruncatedImageError):
        seen(content[:-num_missing])


@pytest.mark.parametrize("colour", ["black", "grey", "white", "#808080"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "JPEG2000", "GIF"])
def test_a_whole_picture_of_one_colour_is_whole(kind, colour):
    """Such as one that ends in what a decoder puts where data are missing."""
    image = Image.new("RGB", (300, 200), colour)
    require_like(seen(encoded(image, kind)), np.asarray(image), most=1)


def test_a_few_rows_of_many_are_not_whole():
    kind = PngKind(COLOUR, 8, False, False)
    content = png_file(kind, Image.new("RGBA", (60, 10), "red"))
    taller = struct.pack(">IIBBBBB", 60, 9900, 8, COLOUR, 0, 0, 0)
    content = content[:8] + chunk(b"IHDR", taller) + content[33:]
    with pytest.raises(TruncatedImageError, match=r"^the image is truncated: it ends before its last row$"):
        seen(content)


@pytest.mark.parametrize(("kind", "mode", "options", "_"), KINDS)
def test_a_damaged_picture_is_seen_or_refused_as_one(kind, mode, options, _):
    """Never with another error, whose cause would be sought in the worker."""
    content = encoded(noisy_scene().convert(mode), kind, **options)
    random = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(content)
        reach = 200 if random.random() < 0.7 else len(content)
        for place in random.integers(4, reach, random.integers(1, 6)):
            damaged[place] = random.integers(256)
        with contextlib.suppress(MediaError):
            assert seen(bytes(damaged), rule=PictureRule(max_pixels=2**20)).ndim == 3


def indexed_png(*chunks: bytes) -> bytes:
    """Return a PNG whose pixels are all of index 1."""
    header = struct.pack(">IIBBBBB", 40, 40, 8, 3, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\1" * 40) * 40)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")])


def test_indices_without_a_palette_are_corrupt() -> None:
    with pytest.raises(TruncatedImageError, match="no palette"):
        seen(indexed_png())


def test_more_transparency_than_colours_is_passed_over() -> None:
    red_green = chunk(b"PLTE", b"\xff\0\0\0\xff\0")
    plain = seen(indexed_png(red_green, chunk(b"tRNS", b"\0")))
    assert np.array_equal(plain, seen(indexed_png(red_green, chunk(b"tRNS", b"\0\xff" + b"\0" * 300))))
    assert plain[0, 0].tolist() == [0, 255, 0]
