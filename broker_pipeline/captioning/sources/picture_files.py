"""Finds pictures among the paths that a person typed."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.pictures.formats import ENDINGS
from broker_pipeline.terminal import printable


@dataclass(slots=True)
class FoundPictures:
    """What the paths lead to: every picture once, by the first path that leads there, as it was typed."""

    recursive: bool = True
    pictures: list[Path] = field(default_factory=list)
    num_repeated: int = 0
    """Further paths to pictures that were found already."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    """Folders that could not be listed, with the reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files of folders that are not named like pictures, counted by their endings."""
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

    def left_out_text(self) -> str:
        """Say what was left out, the most frequent ending first."""
        endings = (f"{count} {printable(ending) or 'without ending'}" for ending, count in self.left_out.most_common())
        return f"left out, as not named like pictures: {', '.join(endings)}"

    def _walk(self, folder: Path) -> None:
        for root, folders, files in os.walk(folder, onerror=self._note_unreadable):
            folders[:] = sorted(name for name in folders if self.recursive and not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                self._look_at_name(Path(root, name))

    def _look_at_name(self, path: Path) -> None:
        ending = path.suffix.lower()
        if ending in ENDINGS:
            self._take(path)
        else:
            self.left_out[ending] += 1

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
    """Return the files named, and the pictures (by ending) inside the folders named, each once.

    Files keep the order in which they were named, whatever their ending; a folder's pictures are sorted, and
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
