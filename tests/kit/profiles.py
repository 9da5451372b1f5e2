"""Traces of processes as if they had been recorded, on machines whose clocks disagree."""

from __future__ import annotations

from pathlib import Path

from broker_pipeline.tracing.activities import COMPLETE, ENCODE, QUEUE, RECEIVE, SEND, STEP, Activity
from broker_pipeline.tracing.clock import Anchor
from broker_pipeline.tracing.event_writer import EventWriter, Recorded
from broker_pipeline.tracing.events import Fact

MS = 1_000_000
BEGAN = 1_700_000_000 * 10**9


class Machine:
    """The clocks of a host: the wall clock is `ahead_ms` off, the monotonic one began `up_ms` before the true zero."""

    def __init__(self, host: str, *, ahead_ms: float = 0.0, up_ms: float = 0.0) -> None:
        self.host = host
        self.name = f"boot of {host}"
        self.ahead_ns = round(ahead_ms * MS)
        self.up_ns = round(up_ms * MS)
        self.now_ns = 0

    def anchor(self) -> Anchor:
        return Anchor(BEGAN + self.now_ns + self.ahead_ns, self.now_ns + self.up_ns)


class Recording:
    """Writes what one process did; times are given in milliseconds of the true time."""

    def __init__(self, directory: Path, service: str, name: str, machine: Machine, pid: int) -> None:
        self._machine = machine
        self._spans: list[Recorded] = []
        self._writer = EventWriter(directory / f"{service}-{machine.host}-{pid}.json", service, machine, pid)
        self._writer.name = name

    def did(self, activity: Activity, start_ms: float, stop_ms: float, **facts: Fact) -> None:
        start, stop = (round(at * MS) + self._machine.up_ns for at in (start_ms, stop_ms))
        self._spans.append((activity, start, stop, 1, facts))

    def sent(self, subject: str, at_ms: float, message: str = "Envelope", **ids: Fact) -> None:
        """Encode for 0.1 ms until `at_ms`, then send for 0.1 ms."""
        self.did(ENCODE, at_ms - 0.1, at_ms, message=message, subject=subject, **ids)
        self.did(SEND, at_ms, at_ms + 0.1, message=message, subject=subject, **ids)

    def received(self, subject: str, at_ms: float, message: str = "Envelope", **ids: Fact) -> None:
        """Arrive at `at_ms` and be decoded in 0.1 ms."""
        self.did(RECEIVE, at_ms, at_ms + 0.1, message=message, subject=subject, **ids)

    def completed(self, at_ms: float, **ids: Fact) -> None:
        """Be completed by `at_ms`."""
        self.did(COMPLETE, at_ms - 0.1, at_ms, **ids)

    def write(self) -> None:
        """End the file."""
        self._writer.write(self._spans, {1: "event loop"})
        self._writer.close()


def two_stages(directory: Path, near: Machine, far: Machine) -> None:
    """One microbatch from a conductor through a stage alongside it and one on another machine, and back.

    conductor   1.0 ─► 1.5 stage-0, computes 2.0 to 6.0, sends 6.5 ─► 7.5 stage-1 on `far`,
    computes 8.0 to 11.0, sends 11.5 ─► 12.5 conductor, completed 13.0
    """
    ids = {"epoch": 1, "microbatch": 7}
    conductor = Recording(directory, "conductor", "conductor", near, 1)
    conductor.sent("work.0", 1.0, **ids)
    conductor.received("results", 12.5, "MicrobatchResult", **ids)
    conductor.completed(13.0, **ids)
    first = Recording(directory, "stage", "stage-0", near, 2)
    first.received("work.0", 1.5, **ids)
    first.did(QUEUE, 1.6, 2.0, **ids)
    first.did(STEP, 2.0, 6.0, **ids)
    first.sent("work.1", 6.5, **ids)
    second = Recording(directory, "stage", "stage-1", far, 3)
    second.received("work.1", 7.5, **ids)
    second.did(QUEUE, 7.6, 8.0, **ids)
    second.did(STEP, 8.0, 11.0, **ids)
    second.sent("results", 11.5, "MicrobatchResult", **ids)
    for each in (conductor, first, second):
        each.write()
