"""What a vision worker sees of a picture's file, and by how much that differs from something else."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from stages.prompt.images import decode_image


def seen(content: bytes, **options) -> np.ndarray:
    """Return the pixels of a file, uint8 `[height, width, 3]`."""
    return decode_image(content, **options).permute(1, 2, 0).numpy()


def require_like(found: np.ndarray, expected: np.ndarray, *, most: int = 2, mean: float = 1.0) -> None:
    """Hold a picture to another one, in levels of 255."""
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= most
    assert difference.mean() <= mean


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
