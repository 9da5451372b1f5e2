"""Thumbnails of jobs' pictures: only of common formats, and only up to a size, as a gateway is no place for more."""

from __future__ import annotations

from broker_pipeline.pictures import thumbnail
from broker_pipeline.pictures.rule import PictureRule

EDGE = 192
"""Of the longer side, in pixels: twice what the page shows."""
_RULE = PictureRule(
    formats=("JPEG", "PNG", "WebP", "GIF", "BMP"), max_bytes=16 * 2**20, max_pixels=32_000_000, max_aspect_ratio=100
)


def max_picture_bytes() -> int:
    """Return how large a file may be to get a thumbnail."""
    return _RULE.max_bytes


def make_thumbnail(content: bytes) -> bytes:
    """Return a JPEG of at most `EDGE` x `EDGE` pixels without any metadata. Raises `MediaError`."""
    return thumbnail.make_thumbnail(content, _RULE, EDGE)
