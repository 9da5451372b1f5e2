"""Where a GPU's events lie on the host's time axis."""

from __future__ import annotations

import random

import pytest
import torch

from broker_pipeline.tracing.activities import COPY_IN
from stages.device.times import DeviceAxis, take_pieces, timed


class Tick:
    """An event of a GPU whose clock runs `drift` too fast and whose differences have 24 bits, as CUDA's have."""

    drift = 0.0

    def __init__(self, at_ns: float) -> None:
        self.at_ns = at_ns

    def elapsed_time(self, other: Tick) -> float:
        milliseconds = (other.at_ns - self.at_ns) * (1 + self.drift) / 1e6
        return float(torch.tensor(milliseconds, dtype=torch.float32))


@pytest.mark.parametrize("drift", [-2e-5, 0.0, 2e-5])
def test_the_gpu_is_placed_on_the_axis_of_the_host(monkeypatch: pytest.MonkeyPatch, drift: float) -> None:
    monkeypatch.setattr(Tick, "drift", drift)
    chance, axis = random.Random(1), DeviceAxis()
    errors, now = [], 5e12
    for _ in range(3_000):
        began, ended = Tick(now), Tick(now + 9e6)
        axis.locate(began, ended, round(ended.at_ns + chance.expovariate(1 / 40_000)))  # noticed 40 µs late on average
        start, stop = axis.place(began, ended)
        errors.append(max(abs(start - began.at_ns), abs(stop - ended.at_ns)))
        now += 10e6
    errors = sorted(errors[5:])
    assert errors[len(errors) // 2] < 50_000
    assert errors[-1] < 250_000, "half a minute of a GPU's work"


def test_nothing_is_timed_on_a_processor() -> None:
    with timed(COPY_IN, torch.device("cpu")):
        pass
    assert take_pieces() == ()
