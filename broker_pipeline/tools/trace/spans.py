"""What a profile says once it is read: spans, their processes, and the clocks that these measured by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker_pipeline.tracing.clock import Anchor


class Span(msgspec.Struct, kw_only=True, gc=False):
    """Something that went on, `[start, stop)`, in nanoseconds of the time axis that its profile is on."""

    name: str
    kind: str
    row: str
    start: int
    stop: int
    is_async: bool = False
    facts: dict[str, Any] = {}

    @property
    def duration(self) -> int:
        """Nanoseconds."""
        return self.stop - self.start

    @property
    def microbatch(self) -> tuple[int, int] | None:
        """Epoch and number of the microbatch that this was done for."""
        number = self.facts.get("microbatch")
        return None if number is None else (self.facts.get("epoch", 0), number)


@dataclass(slots=True)
class ProcessTrace:
    """One process of a profile."""

    name: str
    """The worker's name, or the service's."""
    service: str
    host: str
    pid: int
    clock: str
    """Which monotonic clock it measures by; those of one machine share it."""
    anchors: list[Anchor]
    spans: list[Span] = field(default_factory=list)

    @property
    def began_ns(self) -> int:
        """When the file began, by the wall clock."""
        return self.anchors[0].wall_ns

    @property
    def offset_ns(self) -> int:
        """What the file has added to the monotonic clock to get the wall clock."""
        return self.anchors[0].offset_ns
