"""Why items failed: a bounded number of reasons, and a few examples of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_pipeline.captioning.line import CaptionLine, failure_kind
from broker_pipeline.captioning.report.shown_text import shown

_MAX_REASONS = 20
_NUM_EXAMPLES = 3
_MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class FailureExample:
    """An item that failed, and what was said of it."""

    id: str
    message: str


@dataclass(slots=True)
class FailureReason:
    """What failed for one reason."""

    code: str
    num: int = 0
    examples: list[FailureExample] = field(default_factory=list)
    """The first ones."""


class FailureTally:
    """Counts failures by code and reason."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], FailureReason] = {}
        self.num_others = 0
        """Failures for reasons that came when there were too many."""

    def add(self, id: str, line: CaptionLine) -> None:  # noqa: A002 - its field
        """Count the line of an item that has failed."""
        kind = failure_kind(line)
        if kind not in self._reasons and len(self._reasons) == _MAX_REASONS:
            self.num_others += 1
            return
        reason = self._reasons.setdefault(kind, FailureReason(shown(kind[0], _MAX_TEXT)))
        reason.num += 1
        if len(reason.examples) < _NUM_EXAMPLES:
            message = line.error.message if line.error else ""
            reason.examples.append(FailureExample(shown(id, _MAX_TEXT), shown(message, _MAX_TEXT)))

    def reasons(self) -> list[FailureReason]:
        """Return the reasons, the most frequent first."""
        return sorted(self._reasons.values(), key=lambda reason: -reason.num)
