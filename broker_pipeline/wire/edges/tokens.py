"""Tokens by which a listener knows again whom it told where it listens."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

TOKEN_TTL_S = 10.0
_MAX_TOKENS = 256


class Tokens:
    """Each is good once, and for some seconds. What somebody without a token may do, is to be turned away."""

    def __init__(self, ttl_s: float = TOKEN_TTL_S, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none."""
        self._ttl_s = ttl_s
        self._clock = clock
        self._expires_at: dict[str, float] = {}

    def issue(self) -> str:
        """Return a new token; the oldest of very many is void then."""
        token = secrets.token_hex(16)
        self._expires_at[token] = self._clock() + self._ttl_s
        if len(self._expires_at) > _MAX_TOKENS:
            del self._expires_at[next(iter(self._expires_at))]
        return token

    def redeem(self, token: str) -> bool:
        """Say whether a token is good; it is not a second time."""
        return self._expires_at.pop(token, float("-inf")) > self._clock()
