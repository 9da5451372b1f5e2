"""The sessions of a stage, opened and closed as envelopes say. Lives on the compute thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog
from torch import Tensor

from broker_pipeline.errors import PipelineError, StaleEpochError
from broker_pipeline.messages.activation import SessionClose, SessionOpen
from broker_pipeline.tracing.activities import SESSION
from broker_pipeline.tracing.tracer import tracer
from stages.compute.stage_compute import StageCompute
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.stage.closed_attempts import ClosedAttempts
from stages.worker.epoch_fence import EpochFence

log = structlog.get_logger()

Opened = tuple[SessionOpen, Tensor]
"""An opening, and the session's token ids so far, int32 `[h]`; none where sampling does not need them."""


class StageSessions:
    """What is open on a stage's computation, kept in step with the epoch of the conductor that the stage obeys."""

    def __init__(self, compute: StageCompute, fence: EpochFence, visual_rows: VisualRowBuffer) -> None:
        self._compute = compute
        self._fence = fence
        self._visual_rows = visual_rows
        self._closed = ClosedAttempts()
        self._opened_ns: dict[tuple[str, int], int] = {}
        self._epoch = 0

    @property
    def num_open(self) -> int:
        """Sessions that are open here."""
        return self._compute.num_open

    @property
    def kv_used_tokens(self) -> int:
        """Tokens of KV that are promised to sessions that are open."""
        return self._compute.kv.reserved_tokens - self._compute.num_kept_tokens

    @property
    def kv_kept_tokens(self) -> int:
        """Tokens of KV that are kept of sessions that have ended."""
        return self._compute.num_kept_tokens

    def follow_epoch(self) -> None:
        """Drop every session and visual row of an epoch that the fence has left behind."""
        if self._fence.current == self._epoch:
            return
        log.info("epoch_adopted", epoch=self._fence.current, previous=self._epoch, num_dropped=self.num_open)
        self._epoch = self._fence.current
        self._compute.close_all()
        self._opened_ns.clear()
        self._closed.clear()
        self._visual_rows.drop_before(self._epoch)

    def require_epoch(self, epoch: int) -> None:
        """Follow the fence, and raise StaleEpochError if `epoch` has ended meanwhile."""
        self.follow_epoch()
        if epoch < self._epoch:
            raise StaleEpochError(f"epoch {epoch} ended while the microbatch waited", field="epoch")

    def close(self, closes: Iterable[SessionClose]) -> None:
        """Close sessions, and remember that these attempts are over."""
        for closing in closes:
            self._compute.close(closing.session, closing.attempt, num_kept_tokens=closing.num_kept_tokens)
            self._closed.add(closing.session, closing.attempt)
            if opened := self._opened_ns.pop((closing.session, closing.attempt), None):
                tracer.span(SESSION, opened, session=closing.session, attempt=closing.attempt)

    def open(
        self, opens: Sequence[SessionOpen], history: Sequence[Tensor]
    ) -> tuple[list[Opened], list[tuple[SessionOpen, PipelineError]]]:
        """Open sessions, `history` their token ids so far; returns those that are open, and why the others are not."""
        opened: list[Opened] = []
        failures: list[tuple[SessionOpen, PipelineError]] = []
        for opening, tokens in zip(opens, history, strict=True):
            try:
                self._closed.check(opening.session, opening.attempt)
                self._compute.open(opening, tokens.tolist())
            except PipelineError as error:
                failures.append((opening, error))
            else:
                opened.append((opening, tokens))
                self._opened_ns[opening.session, opening.attempt] = tracer.now()
        return opened, failures
