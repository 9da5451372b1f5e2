"""Rows as a run makes them, without one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.sinks.row import Row, Sink
from broker_pipeline.captioning.sources.item import Item, broken
from broker_pipeline.errors import Failure, UnreadableFileError
from tests.kit.running.captioner import numbered_picture

HOSTILE = [
    "plain",
    "two\nlines",
    'a "quote", and a comma',
    "emoji 🦊",
    "end\u2028of line",
    "nul\0inside",
    "half \ud83d",
]


def line(
    id_: str,
    caption: str | None = "a picture",
    status: str = "succeeded",
    question: str | None = None,
    content: bytes = b"",
) -> CaptionLine:
    return CaptionLine(
        path=id_,
        sha256=hashlib.sha256(content).hexdigest(),
        question=question,
        status=status,
        caption=caption,
        error=None if caption is not None else Failure("compute", "out of luck"),
        request="r",
        model="tiny",
        job_id=f"job-{id_}",
        seed=3,
    )


def file_row(path: Path, caption: str | None = "a picture") -> Row:
    status = "failed" if caption is None else "succeeded"
    about = line(str(path), caption, status, content=path.read_bytes())
    return Row(Item(str(path), path.read_bytes, {}, path), {"caption": about})


def table_rows(num: int, caption: Callable[[int], str] = lambda number: f"caption {number}") -> list[Row]:
    """Rows of a table without files, each with fields."""
    rows = []
    for number in range(num):
        id_ = f"in.parquet#{number}"
        item = Item(id_, lambda number=number: numbered_picture(number), {"kind": "a", "size": number})  # type: ignore[misc]
        rows.append(Row(item, {"caption": line(id_, caption(number), content=item.read())}))
    return rows


def unreadable_row() -> Row:
    return Row(broken("gone#1", UnreadableFileError("it is gone")), {"caption": line("gone#1")})


def fill(sink: Sink, rows: list[Row], *, is_whole: bool = True) -> None:
    for row in rows:
        sink.add(row)
    sink.close(is_whole=is_whole)
