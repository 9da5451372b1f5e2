"""What came of all items, in numbers: it takes the same memory after ten million of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.report.answer_tally import AnswerTally
from broker_pipeline.captioning.report.failure_tally import FailureTally
from broker_pipeline.captioning.report.frequent import Frequent
from broker_pipeline.captioning.report.shown_text import shown
from broker_pipeline.captioning.sinks.row import Row

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Model:
    """Who answered, as far as a line says it."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a guard found, and what became of the caption."""

    reason: str
    status: str


@dataclass(slots=True)
class RowTally:
    """Counts rows. An item counts by the worst of its answers."""

    num_items: int = 0
    num_captioned: int = 0
    num_dropped: int = 0
    num_failed: int = 0
    num_marked: int = 0
    """Captioned items of which a guard found something wrong with a caption that was kept."""
    models: Frequent[Model] = field(default_factory=lambda: Frequent(capacity=16))
    guards: Frequent[Judgement] = field(default_factory=lambda: Frequent(capacity=128))
    failures: FailureTally = field(default_factory=FailureTally)
    questions: dict[str, AnswerTally] = field(default_factory=dict)
    """By name."""

    def add(self, row: Row) -> None:
        """Count a row."""
        self._count_item(list(row.lines.values()))
        for name, line in row.lines.items():
            self.questions.setdefault(name, AnswerTally()).add(line)
            if line.is_success and (line.model or line.fingerprint):
                self.models.add(Model(line.model or "", line.fingerprint or ""))
            if line.guard:
                self.guards.add(Judgement(shown(line.guard, _MAX_NAME), line.status))
            if not line.is_final:
                self.failures.add(row.item.id, line)

    def _count_item(self, lines: list[CaptionLine]) -> None:
        self.num_items += 1
        if not lines or not all(line.is_final for line in lines):
            self.num_failed += 1
        elif not all(line.is_success for line in lines):
            self.num_dropped += 1
        else:
            self.num_captioned += 1
            self.num_marked += any(line.guard for line in lines)
