"""Work that is done again and again, and an outage that is said once, however long it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from broker_pipeline.errors import PipelineError

log = structlog.get_logger()


class OutageLog:
    """What one kind of work has last failed with."""

    def __init__(self, event: str, *errors: type[PipelineError], **facts: object) -> None:
        """Log failures with `errors`, or with any of ours, as `event` with `facts`; others are bugs, and raised."""
        self._event = event
        self._facts = facts
        self._errors = errors or (PipelineError,)
        self._reason = ""

    @contextmanager
    def outlasting(self) -> Iterator[None]:
        """Go on after the work in this context has failed; log why, unless the time before failed for the same."""
        try:
            yield
        except self._errors as error:
            if error.message != self._reason:
                log.warning(self._event, code=error.code, reason=error.message, **self._facts)
            self._reason = error.message
        else:
            self._reason = ""
