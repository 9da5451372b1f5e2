"""Finds pictures among the paths that a person typed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from broker_pipeline.errors import ConfigurationError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


def find_pictures(paths: Iterable[Path], *, recursive: bool = True) -> list[Path]:
    """Return the files named, and the pictures (by extension) inside the folders named, each once.

    Files keep the order in which they were named, whatever their extension; a folder's pictures are sorted, and
    hidden files and folders in it are left out. Raises `ConfigurationError` for a path that does not exist.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        for picture in _pictures_of(path, recursive):
            found.setdefault(picture.resolve(), picture)
    return list(found.values())


def _pictures_of(path: Path, recursive: bool) -> Iterator[Path]:
    if path.is_dir():
        return _walk(path, recursive)
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist", field="PATHS")
    return iter([path])


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                yield Path(root, name)
