"""When a GPU did what, for profiles: pairs of events in its streams, put onto the host's time axis once they are done.

    with timed(COPY_IN): ...           records two events, on the thread that launches
    launched.pieces                    what was timed since the last microbatch
    axis.locate(clock); axis.place(…)  once the microbatch was waited for

Nothing is recorded while there is no profile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from broker_pipeline.tracing.activities import Activity
from broker_pipeline.tracing.tracer import tracer

_MOST_PIECES = 256
_RENEW_NS = 2_000_000_000
_DRIFT_NS = 100_000  # at most what two clocks drift apart in that time
_NOTHING = nullcontext()


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that a GPU does between two events with timing."""

    activity: Activity
    began: torch.cuda.Event
    ended: torch.cuda.Event


class _Recent(threading.local):
    def __init__(self) -> None:
        self.pieces: deque[Piece] = deque(maxlen=_MOST_PIECES)


_recent = _Recent()


def timed(activity: Activity, device: torch.device) -> AbstractContextManager[None]:
    """Time what is queued inside of the context, in the current stream of a GPU; nothing elsewhere."""
    return _timed(activity) if tracer.is_on and device.type == "cuda" else _NOTHING


@contextmanager
def _timed(activity: Activity) -> Iterator[None]:
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    yield
    ended.record()
    _recent.pieces.append(Piece(activity, began, ended))


def take_pieces() -> tuple[Piece, ...]:
    """Return what this thread has timed since it was last asked."""
    pieces = tuple(_recent.pieces)
    _recent.pieces.clear()
    return pieces


class DeviceAxis:
    """Where the events of one GPU lie on the host's monotonic clock, in nanoseconds.

    Events only tell their distance from each other. Whoever waits for one learns of it a little late, by a time that
    varies and is never negative: so the least distance seen between host and GPU is nearest to the truth. It is looked
    for anew from time to time, since the two clocks drift apart and far distances have fewer digits.
    """

    def __init__(self) -> None:
        self._origin: torch.cuda.Event | None = None
        self._offset_ns = 0

    def locate(self, began: torch.cuda.Event, ended: torch.cuda.Event, seen_ns: int) -> None:
        """Learn from something that ended on the GPU and was noticed at `seen_ns`."""
        if self._origin is None:
            self._origin = began
            self._offset_ns = seen_ns - self._distance(ended)
        elif self._distance(began) > _RENEW_NS:
            self._offset_ns += self._distance(began) + _DRIFT_NS
            self._origin = began
        self._offset_ns = min(self._offset_ns, seen_ns - self._distance(ended))

    def place(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> tuple[int, int]:
        """Return beginning and end of something that is done."""
        return self._offset_ns + self._distance(began), self._offset_ns + self._distance(ended)

    def _distance(self, instant: torch.cuda.Event) -> int:
        assert self._origin is not None, "located first"
        elapsed_ms: float = self._origin.elapsed_time(instant)
        return round(elapsed_ms * 1e6)
