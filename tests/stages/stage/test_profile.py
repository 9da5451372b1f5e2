"""What a stage's profile shows of a GPU; the events are not a GPU's here, all else is real."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from broker_pipeline.messages.activation import Envelope
from broker_pipeline.tools.trace.reading import read_trace
from broker_pipeline.tracing.activities import COPY_IN, COPY_OUT, DEVICE
from broker_pipeline.tracing.tracer import tracer
from stages.compute.launched import DeviceClock, Launched
from stages.compute.microbatch import StageOutput
from stages.device.host_copy import HostCopy
from stages.device.times import Piece
from stages.stage.profile import StageProfile

MS = 1_000_000


class Tick:
    """An event of a GPU."""

    def __init__(self, at_ms: float) -> None:
        self.at_ms = at_ms

    def elapsed_time(self, other: Tick) -> float:
        return other.at_ms - self.at_ms

    def query(self) -> bool:
        return True


class SkewedClock(DeviceClock):
    """Was on a GPU from `began` to `ended`; the host noticed `late_ms` later."""

    def __init__(self, began_ms: float, ended_ms: float, late_ms: float) -> None:
        super().__init__(torch.device("cpu"))
        self._piece: Any = Piece(DEVICE, Tick(began_ms), Tick(ended_ms))  # type: ignore[arg-type]
        self.seen_ns = round((ended_ms + late_ms) * MS)

    @property
    def piece(self) -> Any:
        return self._piece


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tracer.start(tmp_path, "stage", max_events=1000)
    tracer.stop()


def test_the_gpu_has_rows_of_its_own_on_which_nothing_overlaps(path: Path) -> None:
    profile = StageProfile(torch.device("cuda"))
    lateness = (0.5, 0.02, 0.3, 0.01, 0.2)
    for number, late_ms in enumerate(lateness, start=1):
        began = number * 10.0
        envelope = Envelope(
            pipeline="p", fingerprint="f", epoch=1, microbatch=number, route=("a",), reply="r", budget_s=1.0
        )
        pieces: Any = (
            Piece(COPY_IN, Tick(began + 1), Tick(began + 2)),  # type: ignore[arg-type]
            Piece(COPY_OUT, Tick(began + 10), Tick(began + 12)),  # type: ignore[arg-type]
        )
        launched_at = profile.began(envelope, tracer.now())
        profile.launched(envelope, launched_at)
        output = StageOutput(segments=(), positions=torch.empty(3, 0, dtype=torch.int32), hidden=None)
        launched = Launched(output, HostCopy(None, None), (), None, SkewedClock(began, began + 10, late_ms), 1, pieces)
        profile.collected(envelope, launched, round((began + 1) * MS), has_failed=False)
    tracer.stop()
    rows: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for span in read_trace(path).spans:
        rows[span.row, span.name].append((span.start, span.stop))
    whole, copies = rows["device", "microbatch"], rows["device copies", "to host"]
    assert len(whole) == len(copies) == len(lateness)
    for row in (whole, copies):
        assert all(before[1] <= after[0] for before, after in pairwise(row))
    for outer, inner in zip(whole, rows["device", "to device"], strict=True):
        assert outer[0] <= inner[0] <= inner[1] <= outer[1]
    assert whole[-1][1] - whole[-1][0] == pytest.approx(10 * MS, abs=MS)
