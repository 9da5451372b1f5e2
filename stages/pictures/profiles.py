"""Colours by their ICC profile to sRGB."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
_LARGEST_NO_DIFFERENCE = 1
"""Levels of 255 by which a profile may change any colour and still be taken for sRGB, and so for nothing."""


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Return a grey, RGB or CMYK image as RGB; as if it had no profile, where that is broken or of other colours."""
    transform = _transform(icc_profile, image.mode) if icc_profile is not None else None
    if transform is None:
        return image.convert("RGB")
    return transform.apply(image)


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """Return a CIE L*a*b* image as RGB."""
    return _lab_transform().apply(image)


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


@lru_cache(maxsize=16)
def _transform(icc_profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc_profile))
        if profile.profile.xcolor_space != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform if _changes_colours(transform, mode) else None


def _changes_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    bands = len(Image.new(mode, (1, 1)).getbands())
    grid = np.stack(np.meshgrid(*[steps] * bands, indexing="ij"), axis=-1).reshape(1, -1, bands)
    colours = Image.frombytes(mode, (grid.shape[1], 1), grid.tobytes())
    before, after = (np.asarray(each, dtype=np.int16) for each in (colours.convert("RGB"), transform.apply(colours)))
    return bool(np.abs(before - after).max() > _LARGEST_NO_DIFFERENCE)
