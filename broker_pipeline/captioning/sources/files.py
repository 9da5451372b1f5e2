"""Files and folders of this machine, as a source."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from broker_pipeline.captioning.sources.item import Item, broken
from broker_pipeline.captioning.sources.location import ending_of
from broker_pipeline.captioning.sources.named_item import item_at
from broker_pipeline.captioning.sources.settings import VIDEO_ENDINGS, SourceSettings
from broker_pipeline.errors import ConfigurationError, UnreadableFileError
from broker_pipeline.process.terminal import printable

_HOLDING = (".tar", ".tgz", ".parquet", ".arrow", ".feather")
"""Files that hold pictures: in a folder they are not looked into."""


@dataclass(slots=True)
class Known:
    """The files that were met, so that each is taken once, by the first path that leads there."""

    num_repeated: int = 0
    """Further paths to files that were met already."""
    _seen: set[object] = field(default_factory=set)

    def is_new(self, path: str, facts: os.stat_result | None) -> bool:
        """Whether this is the first path to a file; None where nobody knows what is there."""
        key: object = (facts.st_dev, facts.st_ino) if facts else path
        if key in self._seen:
            self.num_repeated += 1
            return False
        self._seen.add(key)
        return True


class FilesSource:
    """A file, whatever its ending, or the pictures in a folder by theirs: sorted, without hidden files and folders."""

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        known: Known | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Look at a path; raises `ConfigurationError` where nothing is there. `clock` tells seconds since 1970."""
        self.name = name
        self.is_folder = stat.S_ISDIR(facts_of(name).st_mode)
        self.unreadable: dict[str, str] = {}
        """Folders that could not be listed, with the reason. They are items as well."""
        self.left_out: Counter[str] = Counter()
        """Files of folders that are not named like what is taken, counted by their endings."""
        self.num_filtered = 0
        """Files of folders that the settings' names, sizes and ages leave out."""
        self._settings = settings
        self._known = known if known is not None else Known()
        self._clock = clock
        self._paths: list[str] | None = None

    def count(self) -> int:
        """Return how many there are. The first call walks through the folder."""
        return len(self._found()) + len(self.unreadable)

    def __iter__(self) -> Iterator[Item]:
        """Yield the files, and the folders that cannot be listed at the end."""
        for path in self._found():
            yield item_at(path, path)
        for folder, reason in self.unreadable.items():
            yield broken(folder, UnreadableFileError(reason))

    def samples(self) -> Iterator[Item]:
        """Yield one item, or where videos are taken as well, a picture and a video."""
        paths = self._found() if self._settings.videos else self._found()[:1]
        for path in {ending_of(path) in VIDEO_ENDINGS: path for path in reversed(paths)}.values():
            yield item_at(path, path)

    def _found(self) -> list[str]:
        if self._paths is None:
            self._paths = list(self._walk() if self.is_folder else self._named())
        return self._paths

    def _named(self) -> Iterator[str]:
        path = os.fspath(Path(self.name))
        if self._known.is_new(path, _facts(path)):
            yield path

    def _walk(self) -> Iterator[str]:
        now = self._clock()
        for root, folders, files in os.walk(Path(self.name), onerror=self._note_unreadable):
            folders[:] = sorted(name for name in folders if self._settings.recursive and not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                path = os.fspath(Path(root, name))
                if self._is_named_right(path) and self._is_taken(path, now):
                    yield path

    def _is_named_right(self, path: str) -> bool:
        if self._settings.has_patterns and not self._settings.takes_name(Path(path).relative_to(self.name).as_posix()):
            self.num_filtered += 1
            return False
        ending = ending_of(path)
        if ending not in self._settings.endings:
            self.left_out[ending] += 1
            return False
        return True

    def _is_taken(self, path: str, now: float) -> bool:
        facts = _facts(path)  # where there are none, reading tells why
        if facts and not (self._settings.takes_size(facts.st_size) and self._settings.takes_age(now - facts.st_mtime)):
            self.num_filtered += 1
            return False
        return self._known.is_new(path, facts)

    def _note_unreadable(self, error: OSError) -> None:
        self.unreadable[str(error.filename)] = error.strerror or str(error)


def facts_of(path: str) -> os.stat_result:
    """Return what the system says of a path that was typed; raises `ConfigurationError` where nothing is there."""
    try:
        return Path(path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(f"{printable(path)} does not exist", field="PATHS") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot read {printable(path)}: {reason}", field="PATHS") from error


def left_out_text(left_out: Counter[str]) -> str:
    """Say what was left out, the most frequent ending first."""
    endings = (f"{count} {printable(ending) or 'without ending'}" for ending, count in left_out.most_common())
    holding = ", ".join(f"'FOLDER/*{ending}'" for ending in _HOLDING if ending in left_out)
    advice = f"; read where they are named: {holding}" if holding else ""
    return f"left out, as not named like pictures: {', '.join(endings)}{advice}"


def _facts(path: str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except OSError:
        return None
