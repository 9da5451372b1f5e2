"""The index of a log: what was put last, and memory that does not grow with it."""

from __future__ import annotations

import tracemalloc

from broker_pipeline.captioning.log_index import LogIndex


def test_the_last_line_counts_and_kinds_are_apart() -> None:
    index = LogIndex()
    assert index.put("exact", ("a", "b"), 0)
    assert not index.put("exact", ("a", "b"), 7)
    assert index.get("exact", ("a", "b")) == 7
    assert index.get("name", ("a", "b")) is None
    assert index.get("exact", ("a\udce9", "")) is None
    for _ in range(3):
        index.count_failure(("a",))
    assert index.get("failures", ("a",)) == 3
    index.close()


def test_python_holds_nothing_of_many_lines() -> None:
    index = LogIndex()
    tracemalloc.start()
    for number in range(30_000):
        index.put("exact", (f"a/very/long/path/of/a/picture/{number}.png", "0" * 64, "f" * 16, "m" * 64), number)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 300_000, "bytes; a set of such keys would be 10,000,000"
    index.close()
