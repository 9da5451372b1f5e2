"""ICC profiles are followed as ImageMagick follows them, and broken ones are nobody's loss; EXIF turns pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.kit.viewing.icc_profiles import cmyk_profile, grey_profile, rgb_profile
from tests.kit.viewing.imagemagick import judged, needs_imagemagick, rgba_scene
from tests.kit.viewing.seen import encoded, require_like, seen

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # as in a process, see pictures.pillow_headers
PROFILES = {"RGB": rgb_profile, "RGBA": rgb_profile, "L": grey_profile, "CMYK": cmyk_profile}
LOSSLESS = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}}
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}
KINDS = [
    *[("PNG", mode) for mode in ("RGB", "RGBA", "L")],
    *[("TIFF", mode) for mode in PROFILES],
    *[("WEBP", mode) for mode in ("RGB", "RGBA")],
    *[("JPEG", mode) for mode in ("RGB", "L", "CMYK")],
]


def written(kind: str, mode: str, **options) -> bytes:
    return encoded(rgba_scene().convert(mode), kind, **LOSSLESS.get(kind, {}), **options)


@needs_imagemagick
@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_a_profile_is_followed_as_the_judge_does(kind, mode, tmp_path):
    content = written(kind, mode, icc_profile=PROFILES[mode]())
    expected = judged(content, ENDINGS[kind], tmp_path, to_srgb=True)
    assert np.abs(seen(content).astype(int) - seen(written(kind, mode)).astype(int)).mean() > 5
    require_like(seen(content), expected, most=8 if mode == "CMYK" else 4)  # the judge counts in 16 bits


@pytest.mark.parametrize(("kind", "mode"), KINDS)
@pytest.mark.parametrize("profile", [b"no profile", rgb_profile()[:200], grey_profile(), cmyk_profile(), b"\0" * 128])
def test_a_profile_that_is_broken_or_of_other_colours_changes_nothing(kind, mode, profile):
    if profile == PROFILES[mode]():
        return
    require_like(seen(written(kind, mode, icc_profile=profile)), seen(written(kind, mode)), most=0)


def test_a_profile_that_is_srgb_leaves_every_pixel_as_it_is():
    """So that what most cameras and programs add does not tell pictures from those that transformers sees."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = written("PNG", "RGB", icc_profile=profile)
    require_like(seen(content), np.asarray(rgba_scene().convert("RGB")), most=0)


@needs_imagemagick
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_turns_a_picture_as_the_judge_does(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"AVIF": {"quality": 95, "subsampling": "4:4:4"}, **LOSSLESS}.get(kind, {})
    image = rgba_scene().convert("RGB")
    content = encoded(image, kind, exif=exif, **options)
    plain = encoded(image, "PNG")  # whose EXIF data the judge is told, as it does not read those of every format
    tolerance = {"most": 16, "mean": 1.5} if kind in {"AVIF", "JPEG"} else {}
    require_like(seen(content), judged(plain, ".png", tmp_path, orientation=orientation), **tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"?" * 99]
)
def test_broken_exif_data_change_nothing(kind, exif):
    require_like(seen(written(kind, "RGB", exif=exif)), seen(written(kind, "RGB")), most=0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    require_like(seen(written("PNG", "RGB", exif=exif)), seen(written("PNG", "RGB")), most=0)
