"""Sources of any length take the memory of a few items."""

from __future__ import annotations

import pathlib
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from broker_pipeline.captioning.sources.open import open_source
from tests.broker_pipeline.captioning.sources.test_tar import write_tar

_NUM_ROWS = 6_000


def _table(path: Path) -> None:
    parquet.write_table(pa.table({"path": [f"pictures/{n:020}.png" for n in range(_NUM_ROWS)]}), path)


def _text(path: Path) -> None:
    path.write_text("path\n" + "".join(f"pictures/{n:020}.png\n" for n in range(_NUM_ROWS)))


def _tar(path: Path) -> None:
    write_tar(path, [(f"{n}.jpg", b"") for n in range(_NUM_ROWS)])


@pytest.mark.parametrize(
    ("name", "write"), [("a.parquet", _table), ("a.csv", _text), ("a.txt", _text), ("a.tar", _tar)]
)
def test_memory_does_not_grow_with_items(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    items = iter(open_source(str(tmp_path / name)))
    assert len([*islice(items, 1000)]) == 1000
    tracemalloc.start()
    try:
        assert sum(1 for _ in islice(items, _NUM_ROWS - 1500)) == _NUM_ROWS - 1500
        left = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
    finally:
        tracemalloc.stop()
    assert sum(trace.size for trace in left.traces) < 20 * _NUM_ROWS
