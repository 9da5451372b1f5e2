"""Which of what is there becomes an item."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.pictures.formats import ENDINGS

VIDEO_ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi"})
"""How files of the containers that are decoded are called, in lower case, with the dot."""


class SourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is taken. Patterns, sizes and ages choose among the files of folders; what is named itself is taken."""

    recursive: bool = True
    include: tuple[str, ...] = ()
    """Patterns as of a shell, of paths below the folder or of names; a file fits one of them where there are any."""
    exclude: tuple[str, ...] = ()
    min_bytes: int | None = None
    max_bytes: int | None = None
    newer_than_s: float | None = None
    """Seconds since a file was last changed, as the next one."""
    older_than_s: float | None = None
    shuffle: Annotated[int, Meta(ge=0)] | None = None
    """Seed of the order; None keeps the order that things have."""
    image_column: str | None = None
    """A table's column of pictures, paths or URLs; None guesses."""
    videos: bool = False
    """Whether folders and tars give their videos as well."""

    @property
    def endings(self) -> frozenset[str]:
        """Of the files that are taken out of folders and tars."""
        return ENDINGS | VIDEO_ENDINGS if self.videos else ENDINGS

    @property
    def has_patterns(self) -> bool:
        """Whether names matter beyond their endings."""
        return bool(self.include or self.exclude)

    def takes_name(self, relative: str) -> bool:
        """Whether the patterns let a file pass; `relative` is its path below the folder, with slashes."""
        names = (relative, relative.rpartition("/")[2])

        def fits(patterns: tuple[str, ...]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

        return (not self.include or fits(self.include)) and not fits(self.exclude)

    def takes_size(self, num_bytes: int) -> bool:
        """Whether a file is neither too small nor too large."""
        return (self.min_bytes or 0) <= num_bytes and (self.max_bytes is None or num_bytes <= self.max_bytes)

    def takes_age(self, age_s: float) -> bool:
        """Whether a file is neither too old nor too new."""
        newer, older = self.newer_than_s, self.older_than_s
        return (newer is None or age_s <= newer) and (older is None or age_s >= older)
