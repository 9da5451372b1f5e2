"""Which workers give signs of life. Pure: the time is passed in.

A worker is silent when neither its heartbeat nor an answer of it came for `timeout_s` while we could have heard it;
the time in which our own connection was down does not count.
"""

from __future__ import annotations


class Liveness:
    """When each instance was heard of last."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._heard: dict[str, float] = {}
        self._deaf_since: float | None = None

    def heard(self, key: str, now: float) -> None:
        """Note a sign of life."""
        self._heard[key] = now

    def forget(self, key: str) -> None:
        """Drop a worker."""
        self._heard.pop(key, None)

    def set_connected(self, is_connected: bool, now: float) -> None:
        """Note whether we can hear at all; after an interruption everyone has the full time again."""
        if not is_connected:
            self._deaf_since = now if self._deaf_since is None else self._deaf_since
        elif self._deaf_since is not None:
            self._deaf_since = None
            self._heard = dict.fromkeys(self._heard, now)

    def is_alive(self, key: str, now: float) -> bool:
        """Whether a worker was heard of recently enough."""
        if self._deaf_since is not None:
            return key in self._heard
        return key in self._heard and now - self._heard[key] < self._timeout_s
