"""A few rows to look at, the same ones whenever the same data set is captioned."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import blake2b

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.report.shown_text import shown
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import MediaError
from broker_pipeline.pictures import thumbnail
from broker_pipeline.pictures.rule import PictureRule

_MAX_NAME = 500
EDGE = 320
"""Of a thumbnail's longer side, in pixels."""
_RULE = PictureRule(formats=("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"), max_pixels=64_000_000)
"""What gets one: the page is nothing to lose a run for."""


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """What a question came to."""

    question: str
    prompt: str
    texts: tuple[str, ...]
    """All captions; the one that was refused, where a guard dropped it; none where the question failed."""
    is_caption: bool
    remark: str
    """What a guard or an error said; empty where all is well."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """An item to look at."""

    id: str
    thumbnail: str
    """A JPEG in base64; empty where there is none."""
    why_none: str
    answers: tuple[SampleAnswer, ...]


class RowSample:
    """Keeps the rows whose names have the smallest hashes, of those with an answer to any question."""

    def __init__(self, size: int = 24) -> None:
        self.size = size
        self._rows: dict[bytes, SampleRow] = {}

    def add(self, row: Row) -> None:
        """Take a row, or leave it. A picture is read, and made small, where its row is taken."""
        if not any(line.is_final for line in row.lines.values()):
            return
        key = blake2b(row.item.id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in self._rows and len(self._rows) == self.size:
            if key > (last := max(self._rows)):
                return
            del self._rows[last]
        self._rows[key] = _sample_row(row)

    def rows(self) -> list[SampleRow]:
        """Return the rows in the order of their hashes, which is none."""
        return [self._rows[key] for key in sorted(self._rows)]


def _sample_row(row: Row) -> SampleRow:
    shown_picture, why_none = _thumbnail(row.item)
    answers = tuple(_answer(name, line) for name, line in row.lines.items())
    return SampleRow(shown(row.item.id, _MAX_NAME), shown_picture, why_none, answers)


def make_thumbnail(content: bytes) -> bytes:
    """Return a JPEG of at most `EDGE` x `EDGE` pixels without any metadata. Raises `MediaError`."""
    return thumbnail.make_thumbnail(content, _RULE, EDGE)


def _thumbnail(item: Item) -> tuple[str, str]:
    if item.is_video:
        return "", "a video"
    try:
        return base64.b64encode(make_thumbnail(item.read())).decode(), ""
    except MediaError as error:
        return "", f"not shown: {shown(error.message, _MAX_NAME)}"


def _answer(name: str, line: CaptionLine) -> SampleAnswer:
    remark = line.guard or ("" if line.is_success else line.error.message if line.error else line.status)
    texts = [line.caption or "", *(choice.text for choice in line.choices[1:])] if line.is_success else []
    if line.status == "dropped" and line.uncleaned:
        texts = [line.uncleaned]
    return SampleAnswer(
        name,
        shown(line.prompt or ""),
        tuple(shown(text) for text in texts),
        line.is_success,
        shown(remark, _MAX_NAME),
    )
