"""Says once of each row that it cannot be read: those who list rows meet it again and again."""

from __future__ import annotations

from collections import OrderedDict

import structlog

log = structlog.get_logger()

_NUM_REMEMBERED = 1024


class UnreadableRows:
    """The rows of one kind that were met."""

    def __init__(self, event: str) -> None:
        """Log each as `event`."""
        self._event = event
        self._said: OrderedDict[tuple[str, str], None] = OrderedDict()

    def note(self, row: str, reason: str) -> None:
        """Say that a row cannot be read, unless that was said of it lately."""
        if (row, reason) not in self._said:
            log.warning(self._event, row=row, reason=reason)
        self._said[row, reason] = None
        self._said.move_to_end((row, reason))
        while len(self._said) > _NUM_REMEMBERED:
            self._said.popitem(last=False)
