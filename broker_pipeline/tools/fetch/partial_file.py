"""A file on its way: what came is on the disk, in order, and was compared with the manifest as far as it reaches.

.fetch/NAME  ── whole and right ──►  synced, NAME by one rename
    └── killed: read again by the next run, cut off behind the last section that is right, continued
"""

from __future__ import annotations

import os
from pathlib import Path

from broker_pipeline.artifact_files.contents import ContentCheck, FileContent, Section, read_pieces


class PartialFile:
    """One file that is written from its beginning. Blocks: use it on a thread."""

    def __init__(self, directory: Path, content: FileContent) -> None:
        """Go on with what an earlier run left in `directory`."""
        self.content = content
        self._path = directory / content.name
        self._check = ContentCheck(content)
        self.num_bytes = 0
        """That are here, and not known to be wrong."""
        self._path.touch()
        self._file = self._path.open("r+b")
        for piece in read_pieces(self._path):
            self._check.update(piece)
            self.num_bytes += len(piece)
        if self._check.altered or self.num_bytes > content.size_bytes:
            self.cut()
        self._file.seek(self.num_bytes)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is here, and right."""
        return self._check.unfinished is None and not self._check.altered

    def write(self, piece: bytes) -> Section | None:
        """Take the next bytes; return the first section that turns out to be wrong, of which `cut` gets rid."""
        self._file.write(piece)
        self.num_bytes += len(piece)
        self._check.update(piece)
        return self._check.altered[0] if self._check.altered else None

    def cut(self, *, all_of_it: bool = False) -> None:
        """Drop what is behind the sections that are right, or everything."""
        self.num_bytes = 0 if all_of_it else self._check.num_good_bytes
        self._file.flush()
        self._file.truncate(self.num_bytes)
        self._file.seek(self.num_bytes)
        self._check = ContentCheck(self.content, self.num_bytes)

    def finish(self, target: Path) -> None:
        """Give the file, which is whole, its place and its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.replace(target)

    def close(self) -> None:
        """Leave what is there for the next run; may be called twice, and while another thread writes."""
        self._file.close()
