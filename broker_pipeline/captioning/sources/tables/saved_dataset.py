"""A data set that `datasets.Dataset.save_to_disk` wrote, or several as splits of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.terminal import printable

T = TypeVar("T")
_STATE = "state.json"
_SPLITS = "dataset_dict.json"


class _File(msgspec.Struct):
    filename: str


class _State(msgspec.Struct, rename={"data_files": "_data_files"}):
    data_files: tuple[_File, ...]


class _Splits(msgspec.Struct):
    splits: tuple[str, ...]


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one."""
    return (folder / _SPLITS).is_file() or all((folder / name).is_file() for name in (_STATE, "dataset_info.json"))


def files_of(folder: Path) -> Iterator[str]:
    """Yield its Arrow files in order, split after split; raises `ConfigurationError` where it does not name them."""
    if (folder / _SPLITS).is_file():
        for split in _read(folder / _SPLITS, _Splits).splits:
            yield from files_of(folder / split)
    else:
        for file in _read(folder / _STATE, _State).data_files:
            yield str(folder / file.filename)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{printable(path)} of a saved data set: {error}", field="PATHS") from error
