"""A picture's file as far as it decides what is seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stripped:
    """A file without its metadata, and the two of them that change what is seen.

    They are as they were found, and may be broken: `icc_profile` has at most `MAX_PROFILE_BYTES`.
    """

    content: bytes
    icc_profile: bytes | None = None
    exif: bytes | None = None
    has_end: bool = True
    """Whether the end marker was there that `content` has in any case."""


MAX_PROFILE_BYTES = 8 * 2**20
"""A larger one is not used. Those of printers have some 2 MB."""
