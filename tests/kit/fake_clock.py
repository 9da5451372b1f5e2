"""A clock that stands until a test moves it."""

from __future__ import annotations


class FakeClock:
    """Called, it says the time in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
