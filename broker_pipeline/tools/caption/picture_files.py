"""Finds pictures among the paths that a person typed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.terminal import printable

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(slots=True)
class FoundPictures:
    """What the paths lead to: every picture once, by the first path that leads there, as it was typed."""

    recursive: bool = True
    pictures: list[Path] = field(default_factory=list)
    num_repeated: int = 0
    """Further paths to pictures that were found already."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    """Folders that could not be listed, with the reason."""
    _seen: set[object] = field(default_factory=set)

    def look_at(self, path: Path) -> None:
        """Take a file, whatever its extension, or a folder's pictures; `ConfigurationError` where neither is there."""
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigurationError(f"{printable(path)} does not exist", field="PATHS") from error
        except OSError as error:
            raise ConfigurationError(f"cannot read {printable(path)}: {error.strerror}", field="PATHS") from error
        if is_folder:
            self._walk(path)
        else:
            self._take(path)

    def _walk(self, folder: Path) -> None:
        for root, folders, files in os.walk(folder, onerror=self._note_unreadable):
            folders[:] = sorted(name for name in folders if self.recursive and not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                    self._take(Path(root, name))

    def _take(self, path: Path) -> None:
        key = _file_of(path)
        if key in self._seen:
            self.num_repeated += 1
        else:
            self._seen.add(key)
            self.pictures.append(path)

    def _note_unreadable(self, error: OSError) -> None:
        self.unreadable[Path(error.filename)] = error.strerror or str(error)


def find_pictures(paths: Iterable[Path], *, recursive: bool = True) -> FoundPictures:
    """Return the files named, and the pictures (by extension) inside the folders named, each file once.

    Files keep the order in which they were named, whatever their extension; a folder's pictures are sorted, and
    hidden files and folders in it are left out. Raises `ConfigurationError` for a path that does not exist.
    """
    found = FoundPictures(recursive)
    for path in paths:
        found.look_at(path)
    return found


def _file_of(path: Path) -> object:
    """Return what is the same for all paths to a file."""
    try:
        facts = path.stat()
    except OSError:  # told when the picture is read
        return path.absolute()
    return facts.st_dev, facts.st_ino
