"""What a profile shows of a microbatch at a stage: waiting, launching, the GPU, collecting.

queue ─► launch ─► await GPU ─► collect        threads of the host; on a processor: queue ─► step ─► collect
            └ to device, microbatch, to host    the GPU, by its own clock
"""

from __future__ import annotations

import torch

from broker_pipeline.messages.activation import Envelope
from broker_pipeline.tracing.activities import AWAIT, COLLECT, LAUNCH, QUEUE, STEP
from broker_pipeline.tracing.events import Fact
from broker_pipeline.tracing.tracer import tracer
from stages.compute.launched import Launched
from stages.device.times import DeviceAxis


class StageProfile:
    """Records one stage's microbatches; free while there is no profile."""

    def __init__(self, device: torch.device) -> None:
        self._launching = LAUNCH if device.type == "cuda" else STEP
        self._axis = DeviceAxis()
        self._reached: dict[str | None, int] = {}

    def began(self, envelope: Envelope, checked_ns: int) -> int:
        """Begin with a microbatch, on the compute thread, that has waited since `checked_ns`; returns when."""
        now = tracer.now()
        if tracer.is_on:
            tracer.span(QUEUE, checked_ns, now, **_ids(envelope))
        return now

    def launched(self, envelope: Envelope, began_ns: int) -> None:
        """End what the compute thread does for a microbatch."""
        if tracer.is_on:
            num_tokens = sum(segment.count for segment in envelope.segments)
            tracer.span(
                self._launching, began_ns, **_ids(envelope), num_tokens=num_tokens, num_segments=len(envelope.segments)
            )

    def collected(self, envelope: Envelope, launched: Launched, began_ns: int, *, has_failed: bool) -> None:
        """End a microbatch that was waited for; a GPU that failed is not asked for its times."""
        if not tracer.is_on:
            return
        ids, seen_ns = _ids(envelope), max(began_ns, launched.clock.seen_ns)
        if seen_ns > began_ns:
            tracer.span(AWAIT, began_ns, seen_ns, **ids)
        tracer.span(COLLECT, seen_ns, **ids)
        if not has_failed:
            self._show_device(launched, ids)

    def _show_device(self, launched: Launched, ids: dict[str, Fact]) -> None:
        whole = launched.clock.piece
        if whole is None:
            return
        self._axis.locate(whole.began, whole.ended, launched.clock.seen_ns)
        reached = dict(self._reached)
        for piece in (whole, *launched.pieces):
            if piece.ended.query():
                # What is known of the GPU's clock grows: what follows may seem to begin before its time.
                floor = reached.get(piece.activity.row, 0)
                start, stop = (max(floor, at) for at in self._axis.place(piece.began, piece.ended))
                tracer.span(piece.activity, start, stop, **ids)
                self._reached[piece.activity.row] = max(self._reached.get(piece.activity.row, 0), stop)


def _ids(envelope: Envelope) -> dict[str, Fact]:
    return {"epoch": envelope.epoch, "microbatch": envelope.microbatch}
