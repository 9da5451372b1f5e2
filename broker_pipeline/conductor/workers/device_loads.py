"""How much of each device stages take, and what anything takes there: from counts that only grow, in heartbeats.

heartbeat    1     2     3     4
busy_s      10.0  10.6  11.3  11.9     ┐ of the seconds between them, the later ones count most
clock        0.0   1.0   2.0   3.0     ┘ share: about 0.63
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_KEPT = 0.8  # weight of all that was heard before, with each heartbeat
_STALE_S = 5.0  # a stage that has not been heard of for so long takes nothing


@dataclass(slots=True)
class RecentRatio:
    """By how much one count grows for each unit of another, lately. Both are told as they stand."""

    _last: tuple[float, float] | None = None
    _growth: float = 0.0
    _units: float = 0.0

    def observe(self, count: float, units: float) -> None:
        """Take in both counts. One that is less than before belongs to something else, which begins anew."""
        growth, more = (count - self._last[0], units - self._last[1]) if self._last is not None else (0.0, 0.0)
        self._last = count, units
        if growth >= 0 and more >= 0 and growth + more > 0:
            self._growth, self._units = _KEPT * self._growth + growth, _KEPT * self._units + more

    @property
    def value(self) -> float | None:
        """The ratio; None before it is known."""
        return self._growth / self._units if self._units > 0 else None


@dataclass(slots=True)
class _Stage:
    device_id: str
    num_slots: int
    heard_at: float = 0.0
    busy: RecentRatio = field(default_factory=RecentRatio)


@dataclass(frozen=True, slots=True)
class DeviceLoads:
    """The share of each device's time that stages compute."""

    _stages: dict[str, _Stage] = field(default_factory=dict)

    def hear(self, stage: str, device_id: str, num_slots: int, busy_s: float, now: float) -> None:
        """Take in how long an instance of a stage has computed so far, on one of a device's slots."""
        known = self._stages.setdefault(stage, _Stage(device_id, num_slots))
        known.heard_at = now
        known.busy.observe(busy_s, now)
        for other in [name for name, each in self._stages.items() if now - each.heard_at > _STALE_S]:
            del self._stages[other]

    def shares(self, now: float) -> Mapping[str, float]:
        """Return the share by device, from 0 to 1, of devices on which stages compute."""
        shares: dict[str, float] = {}
        for stage in self._stages.values():
            if stage.device_id and now - stage.heard_at <= _STALE_S:
                taken = (stage.busy.value or 0.0) / stage.num_slots
                shares[stage.device_id] = min(1.0, shares.get(stage.device_id, 0.0) + taken)
        return shares
