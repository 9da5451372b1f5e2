"""The page itself: a template filled in. Everything is escaped but the style, whose hash the page's policy names."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from broker_pipeline.captioning.report.chart import chart_of
from broker_pipeline.captioning.report.row_sample import SampleRow
from broker_pipeline.captioning.report.row_tally import RowTally
from broker_pipeline.captioning.report.shown_text import shown


@dataclass(frozen=True, slots=True)
class Heading:
    """What the page is about. Times are seconds since 1970."""

    title: str
    began_at: float
    ended_at: float
    is_whole: bool
    """Whether the run came to its end."""


def render_page(heading: Heading, tally: RowTally, sample: Sequence[SampleRow]) -> str:
    """Return the page as HTML."""
    style = _text("page.css")
    return _template().render(
        title=heading.title,
        began_at=datetime.fromtimestamp(heading.began_at, UTC),
        ended_at=datetime.fromtimestamp(heading.ended_at, UTC),
        is_whole=heading.is_whole,
        tally=tally,
        sample=sample,
        style=style,
        style_hash=base64.b64encode(sha256(style.encode()).digest()).decode(),
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "chart": chart_of,
        "number": _number,
        "percent": _percent,
        "seconds": _seconds,
        "shown": shown,
    }
    return environment.from_string(_text("page.html.j2"))


def _text(name: str) -> str:
    return files(__package__ or "").joinpath(name).read_text("utf-8")


def _number(count: int) -> str:
    return f"{count:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.0f} s"
