"""Every kind of picture in the other formats is seen as ImageMagick shows it, or refused by its name.

PNG and TIFF, which have the most kinds, have files of their own.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from broker_pipeline.errors import UnsupportedImageError
from broker_pipeline.pictures.header import read_header
from tests.kit.viewing.imagemagick import SIDE, judged, needs_imagemagick, on_white, rgba_scene, write_scene
from tests.kit.viewing.seen import encoded, require_like, seen

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # as in a process, see pictures.pillow_headers

_OPAQUE = "-alpha off "
_LOSSLESS = {"WEBP": {"lossless": True, "exact": True}, "ICO": {"sizes": [SIDE]}}
# Ending, and how ImageMagick writes the kind.
KINDS = [
    (".jpg", _OPAQUE),
    (".jpg", _OPAQUE + "-colorspace Gray"),
    (".jpg", _OPAQUE + "-colorspace CMYK"),
    (".jpg", _OPAQUE + "-interlace JPEG"),
    (".jpg", _OPAQUE + "-sampling-factor 4:1:1"),
    (".jpg", _OPAQUE + "-colorspace RGB -set colorspace sRGB"),
    (".webp", "-quality 90"),
    (".webp", _OPAQUE + "-quality 90"),
    (".webp", "-define webp:lossless=true"),
    (".gif", ""),
    (".gif", _OPAQUE),
    (".gif", "-interlace GIF -colors 16"),
    (".gif", "-colorspace Gray"),
    (".bmp", "-type TrueColorAlpha"),
    (".bmp", _OPAQUE),
    (".bmp", _OPAQUE + "-monochrome"),
    (".bmp", _OPAQUE + "-colors 16 -type Palette"),
    (".bmp", _OPAQUE + "-colors 200 -type Palette"),
    (".bmp", _OPAQUE + "-colors 200 -type Palette -compress RLE"),
    (".bmp", _OPAQUE + "-define bmp:subtype=RGB565"),
    (".bmp", _OPAQUE + "-define bmp:subtype=RGB555"),
    (".bmp", _OPAQUE + "-define bmp:format=bmp2"),
    (".bmp", _OPAQUE + "-define bmp:format=bmp3 -colors 16"),
    (".ico", ""),
    (".ico", _OPAQUE),
    (".ico", _OPAQUE + "-monochrome"),
    (".ico", _OPAQUE + "-colors 16"),
    (".ico", "-colors 200"),
    (".pbm", _OPAQUE),
    (".pbm", _OPAQUE + "-compress none"),
    *[(".pgm", f"{_OPAQUE}-depth {depth}{plain}") for depth in (8, 16) for plain in ("", " -compress none")],
    *[(".ppm", f"{_OPAQUE}-depth {depth}{plain}") for depth in (5, 8, 10, 16) for plain in ("", " -compress none")],
    (".pfm", _OPAQUE),
    (".pfm", _OPAQUE + "-endian LSB"),
    (".pfm", _OPAQUE + "-colorspace Gray"),
    *[(ending, "-depth 8") for ending in (".jp2", ".j2k")],
    *[(ending, _OPAQUE + "-depth 8") for ending in (".jp2", ".j2k")],
    (".jp2", "-colorspace Gray -depth 8"),
    *[(".jp2", f"{_OPAQUE}-colorspace Gray -depth {depth}") for depth in (8, 12, 16)],
    (".avif", _OPAQUE + "-colorspace Gray"),
    *[(".heic", f"{_OPAQUE}-depth {depth}") for depth in (8, 10, 12)],
    (".heic", _OPAQUE + "-colorspace Gray"),
    *[(".tif", f"{_OPAQUE}-compress {way}") for way in ("LZW", "Zip", "JPEG", "RLE", "Zstd -depth 8", "LZMA -depth 8")],
    *[(".tif", f"{_OPAQUE}-monochrome -compress {way}") for way in ("Fax", "Group4", "LZW")],
    (".tif", _OPAQUE + "-depth 8 -define tiff:tile-geometry=16x16"),
    (".tif", _OPAQUE + "-depth 16 -compress Zip -interlace plane"),
    (".tif", _OPAQUE + "-depth 8 -compress none -interlace plane"),
]
# And those that are refused, by this name.
REFUSED = [
    (".bmp", "-define bmp:subtype=ARGB1555", "a BMP of 16 bits with transparency is not decoded here"),
    (".bmp", "-define bmp:subtype=ARGB4444", "Unsupported BMP bitfields layout"),
    (".jp2", _OPAQUE + "-depth 16", "a JPEG 2000 of 3 samples of 16 bits is not decoded here"),
    (".jp2", _OPAQUE + "-depth 12", "a JPEG 2000 of 3 samples of 12 bits is not decoded here"),
    (".tif", _OPAQUE + "-depth 16 -compress none -interlace plane", "planar configuration 2"),
]


@needs_imagemagick
@pytest.mark.parametrize(("ending", "arguments"), KINDS)
def test_a_kind_is_seen_as_the_judge_shows_it(ending, arguments, tmp_path):
    content = write_scene(tmp_path / f"written{ending}", *arguments.split())
    require_like(seen(content), judged(content, ending, tmp_path))


@needs_imagemagick
@pytest.mark.parametrize(("ending", "arguments", "name"), REFUSED)
def test_a_kind_that_is_not_decoded_is_refused_by_its_name(ending, arguments, name, tmp_path):
    content = write_scene(tmp_path / f"written{ending}", *arguments.split())
    with pytest.raises(UnsupportedImageError, match=name):
        read_header(content)


@needs_imagemagick
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_avif_is_seen_as_the_judge_shows_it(mode, tmp_path):
    """Full colour resolution: where there are fewer colours than pixels, decoders fill in between in their own ways."""
    image = rgba_scene().convert(mode)
    content = encoded(image, "AVIF", quality=95, subsampling="4:4:4")
    if mode == "RGB":  # ImageMagick 6 drops an AVIF's alpha; and its libheif rounds colours coarsely
        require_like(seen(content), judged(content, ".avif", tmp_path), most=16, mean=3)
    require_like(seen(content), on_white(image.convert("RGBA")), most=16, mean=1.5)


@needs_imagemagick
@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_seen(kind, tmp_path):
    first = rgba_scene().convert("RGB")
    more = [Image.new("RGB", first.size, colour) for colour in ("blue", "green")]
    content = encoded(first, kind, save_all=True, append_images=more, **_LOSSLESS.get(kind, {}))
    require_like(seen(content), seen(encoded(first, kind, **_LOSSLESS.get(kind, {}))), most=0)
    require_like(seen(content), judged(content, f".{kind.lower()}", tmp_path))


def test_of_an_avif_sequence_the_first_frame_is_seen():
    first = rgba_scene().convert("RGB")
    options = {"quality": 95, "subsampling": "4:4:4"}
    content = encoded(first, "AVIF", save_all=True, append_images=[Image.new("RGB", first.size, "blue")], **options)
    require_like(seen(content), np.asarray(first), most=16, mean=1.5)


@needs_imagemagick
def test_a_gifs_first_frame_that_is_smaller_than_its_screen_stands_on_the_background(tmp_path):
    content = write_scene(tmp_path / "a.gif", "-alpha", "off", "-crop", "20x10+7+9", "-set", "page", "64x48+7+9")
    assert seen(content)[0, 0].tolist() == [255, 255, 255]
    require_like(seen(content), judged(content, ".gif", tmp_path))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "TIFF"),
        ("LA", "TIFF"),
        ("RGBA", "WEBP"),
        ("RGBA", "ICO"),
        ("RGBA", "JPEG2000"),
    ],
)
def test_transparency_shows_the_colour_that_was_chosen(mode, kind):
    image = rgba_scene().convert(mode)
    content = encoded(image, kind, **_LOSSLESS.get(kind, {}))
    behind = Image.new("RGBA", image.size, (10, 200, 30, 255))
    expected = np.asarray(Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB"))
    require_like(seen(content, background=(10, 200, 30)), expected)
    require_like(seen(content), on_white(image.convert("RGBA")))
