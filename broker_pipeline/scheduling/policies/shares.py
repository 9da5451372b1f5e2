"""Which shares of a pipeline a conductor should have. Pure; each conductor decides for itself, a lease makes it so.

shares  a b c d e    conductors  x y      x has a b c    y has d e       as many each, or one more
                                 x y z    x gives up c    z takes it     those that have most keep the one more
                                 y z      y takes a free one, z two      x is dead: its leases have ended
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from broker_pipeline.messages.workers import WorkerRecord

_MISSED_S = 2.0
"""How long a share is missed before it counts as gone: a worker writes a record again that Redis has lost."""
_AWAY_S = 1.0
"""When nobody looked for so long, Redis was away, and a worker could not have written its record again."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a conductor keeps of the shares that it has, and how many more it may take of those that are free."""

    keeps: frozenset[str]
    free: tuple[str, ...]
    num_more: int


def part_of(me: str, members: Collection[str], shares: Collection[str], holders: Mapping[str, str]) -> Part:
    """Return the part of conductor `me` in `shares`, whose leases `holders` have.

    Decided on the same facts, the parts of all members are all shares, and no two differ by more than one. Whoever
    holds a share and is no member, since it ends or has died, has no part in them, and keeps it until its lease ends.
    """
    everybody = {me, *members}
    held = {each: sorted(share for share in shares if holders.get(share) == each) for each in everybody}
    least, num_larger = divmod(len(shares), len(everybody))
    by_size = sorted(everybody, key=lambda each: (-len(held[each]), each))
    size = least + (by_size.index(me) < num_larger)
    free = tuple(sorted(share for share in shares if share not in holders))
    return Part(frozenset(held[me][:size]), free, max(0, size - len(held[me])))


@dataclass(slots=True)
class Shares:
    """Which there are, as records of workers come and go."""

    _missed_since: dict[str, float | None] = field(default_factory=dict)
    """Of each share that counts; None of those that have a stage."""
    _looked_at: float = field(default=0.0)

    def see(self, records: Collection[WorkerRecord], now: float) -> frozenset[str]:
        """Return the shares that have a stage, or had one before it was missed, up to `_MISSED_S` seconds ago.

        Without any it is the one without a name, so that somebody says what is missing.
        """
        seen = {record.share for record in records if record.role == "stage"}
        was_away, self._looked_at = now - self._looked_at > _AWAY_S, now
        missed = {share: now if since is None or was_away else since for share, since in self._missed_since.items()}
        lasting = {share: since for share, since in missed.items() if now - since < _MISSED_S}
        self._missed_since = lasting | dict.fromkeys(seen)
        return frozenset(self._missed_since) or frozenset({""})
