"""Tokens by which a listener knows again whom it told where it listens."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from broker_pipeline.messages.edges import EdgeAsk
from broker_pipeline.wire.edges.edge import NOBODY

TOKEN_TTL_S = 10.0
_MAX_TOKENS = 256


class Tokens:
    """Each is good once, for some seconds, and says who got it. Who comes without one is turned away."""

    def __init__(self, ttl_s: float = TOKEN_TTL_S, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none."""
        self._ttl_s = ttl_s
        self._clock = clock
        self._issued: dict[str, tuple[float, EdgeAsk]] = {}

    def issue(self, holder: EdgeAsk = NOBODY) -> str:
        """Return a new token; the oldest of very many is void then."""
        token = secrets.token_hex(16)
        self._issued[token] = self._clock() + self._ttl_s, holder
        if len(self._issued) > _MAX_TOKENS:
            del self._issued[next(iter(self._issued))]
        return token

    def redeem(self, token: str) -> EdgeAsk | None:
        """Return the holder of a token; None where it is not good, as it is not a second time."""
        expires_at, holder = self._issued.pop(token, (float("-inf"), NOBODY))
        return holder if expires_at > self._clock() else None
