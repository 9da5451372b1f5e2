"""Which hosts of pictures do not answer, so that not every line of a batch finds it out for itself. Pure.

    a failure ──`after_s` of them, and no answer──► down ──an answer, or `forget_s` without a failure──► forgotten

Only that nothing comes counts, without a connection or over one: a status, or bytes that come too slowly, may be about
one picture.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Outage:
    since: float
    failed_at: float
    believed_until: float
    reason: str


class DownHosts:
    """The hosts of one process, `max_hosts` at most: of more, those are forgotten that failed longest ago.

    All times are in seconds of one monotonic clock.
    """

    def __init__(self, *, after_s: float = 20.0, forget_s: float = 60.0, max_hosts: int = 1024) -> None:
        self._after_s = after_s
        self._forget_s = forget_s
        self._max_hosts = max_hosts
        self._outages: dict[str, _Outage] = {}

    def __len__(self) -> int:
        return len(self._outages)

    def failed(self, host: str, reason: str, began: float, now: float) -> None:
        """Note that an attempt, from `began` to `now`, came to nothing.

        It is believed for as long as it took, so that a host at which attempts time out is asked half of the time.
        """
        outage = self._outages.pop(host, None)
        since = now if outage is None or now - outage.failed_at > self._forget_s else outage.since
        self._outages[host] = _Outage(since, now, now + (now - began), reason)
        if len(self._outages) > self._max_hosts:
            del self._outages[next(iter(self._outages))]

    def answered(self, host: str) -> None:
        """Note that a host is there."""
        self._outages.pop(host, None)

    def is_down(self, host: str, now: float) -> bool:
        """Say whether nobody has reached a host for long enough."""
        outage = self._outages.get(host)
        return (
            outage is not None
            and outage.failed_at - outage.since >= self._after_s
            and now - outage.failed_at <= self._forget_s
        )

    def failure(self, host: str, since: float, now: float) -> str | None:
        """Return why a host that is down was not reached; None: not tried from `since` on, nor just before."""
        outage = self._outages.get(host)
        if outage is None or not self.is_down(host, now):
            return None
        return outage.reason if outage.failed_at >= since or now < outage.believed_until else None
