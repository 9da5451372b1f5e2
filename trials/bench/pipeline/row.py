"""One way to do the work, summed up over its rounds, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec

from broker_pipeline.planning.forecast import Forecast
from broker_pipeline.planning.layout import Layout
from trials.bench.breakdown import Breakdown
from trials.bench.report import Column
from trials.bench.spread import Spread, shown
from trials.bench.work import Round


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner expected of a system before it ran."""

    layout: str
    captions_per_s: float
    limit: str
    """What bounds the rate."""
    is_estimated: bool
    """Whether it rests on rates of a device that was not measured."""

    @classmethod
    def of(cls, layout: Layout, found: Forecast) -> Self:
        """Take over a forecast."""
        return cls(
            layout=str(layout),
            captions_per_s=found.captions_per_s,
            limit=found.limit,
            is_estimated=found.is_estimated,
        )

    def __str__(self) -> str:
        return shown(self.captions_per_s) + (" (estimated)" if self.is_estimated else "")


class PipelineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One way to do the work."""

    name: str
    num_prompt_tokens: int
    """Of a session, its visual tokens included."""
    tokens_per_s: Spread
    captions_per_s: Spread
    middle_captions_per_s: Spread | None
    """Of the middle half of each round, without its beginning and its end."""
    cpu_s: dict[str, float]
    """Seconds of a core by program, of all rounds together."""
    seconds: float
    """Of all rounds together."""
    num_pictures: int
    """Of all rounds together."""
    share: float | None
    """Tokens per second as a part of those of one process (the faster of its rows); None without one."""
    start_s: float = 0.0
    """Until a system took jobs; 0 for one process."""
    warm_up_s: float = 0.0
    """Of the first round, which does not count."""
    breakdowns: tuple[Breakdown, ...] = ()
    """Of each round."""
    predicted: Prediction | None = None
    """With `--predict`: captions per second by the planner, for whole rounds."""

    @property
    def num_cores(self) -> float:
        """Cores that were busy, on average."""
        return sum(self.cpu_s.values()) / self.seconds

    @property
    def core_ms(self) -> float:
        """Milliseconds of a core for one picture: what other work on the same cores changes least."""
        return 1e3 * sum(self.cpu_s.values()) / self.num_pictures


def row_of(name: str, done: Sequence[Round], best: float | None) -> PipelineRow:
    """Sum up rounds; `best` is what 100 % stands for, in tokens per second."""
    tokens = Spread.of([each.tokens_per_s for each in done])
    programs = list(dict.fromkeys(program for each in done for program in each.cpu_s))
    middle = [each.middle_captions_per_s for each in done if each.middle_captions_per_s is not None]
    return PipelineRow(
        name=name,
        num_prompt_tokens=done[-1].num_prompt_tokens,
        tokens_per_s=tokens,
        captions_per_s=Spread.of([each.captions_per_s for each in done]),
        middle_captions_per_s=Spread.of(middle) if middle else None,
        cpu_s={program: round(sum(each.cpu_s.get(program, 0.0) for each in done), 3) for program in programs},
        seconds=sum(each.seconds for each in done),
        num_pictures=sum(each.num_pictures for each in done),
        share=tokens.median / best if best else None,
        breakdowns=tuple(each.breakdown for each in done if each.breakdown is not None),
    )


def _programs(row: PipelineRow) -> str:
    used = sorted(row.cpu_s.items(), key=lambda item: -item[1])
    shares = ((name, seconds / row.seconds, 1e3 * seconds / row.num_pictures) for name, seconds in used)
    return ", ".join(f"{name} {cores:.2f} ({shown(each_ms)})" for name, cores, each_ms in shares if cores >= 0.005)


COLUMNS: list[Column] = [
    ("", lambda row: row.name),
    ("prompt", lambda row: row.num_prompt_tokens),
    ("tokens/s (p10-p90)", lambda row: row.tokens_per_s),
    ("captions/s", lambda row: row.captions_per_s),
    ("predicted", lambda row: row.predicted or ""),
    ("middle half", lambda row: row.middle_captions_per_s or ""),
    ("of one process", lambda row: f"{row.share:.0%}" if row.share is not None else ""),
    ("cores busy", lambda row: f"{row.num_cores:.2f}"),
    ("core ms per caption", lambda row: shown(row.core_ms)),
    ("cores busy by program (core ms)", _programs),
]
