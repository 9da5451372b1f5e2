"""What comes into a folder: each file once, when it has come whole, and again when it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from broker_pipeline.captioning.sources.open import open_sources
from broker_pipeline.captioning.watching import Watching


def watched(folder: Path, steps: list[Callable[[], object]]) -> Iterator[str]:
    """Names as they are yielded; each look is followed by a step, and the last one ends it."""

    def sleep(_: float) -> None:
        if not steps:
            raise StopAsyncIteration
        steps.pop(0)()

    try:
        for item in Watching(lambda: open_sources([str(folder)]), sleep):
            yield Path(item.id).name
    except StopAsyncIteration:
        return


def test_a_file_is_taken_once_it_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"whole")
    growing = tmp_path / "b.png"
    steps: list[Callable[[], object]] = [
        lambda: growing.write_bytes(b"1"),
        lambda: growing.write_bytes(b"12"),
        lambda: None,
        lambda: os.utime(tmp_path / "a.png", (1, 1)),
        lambda: None,
        (tmp_path / "a.png").unlink,
        lambda: None,
    ]
    assert list(watched(tmp_path, steps)) == ["a.png", "b.png", "a.png"]
