"""Pictures for tests: small, different from each other, and the broken kinds."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 96, height: int = 64, image_format: str = "PNG") -> bytes:
    """Soft blobs of colour, so that every seed looks different to a model."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    smooth.save(content, image_format)
    return content.getvalue()


def truncated_jpeg(seed: int = 0) -> bytes:
    """A header that promises a picture whose data ends half-way."""
    whole = picture(seed, 320, 240, "JPEG")
    return whole[: len(whole) // 2]
