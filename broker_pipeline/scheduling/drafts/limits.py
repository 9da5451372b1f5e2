"""How much is guessed."""

from __future__ import annotations

from dataclasses import dataclass

FEW_TOKENS = 16
"""A GPU's decode step of so many tokens takes about as long as one of a single token: it reads the same weights."""


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """How many tokens are drafted for one session at a time, and for how many sessions of a microbatch at most."""

    num_tokens: int = 0
    """0: nothing is drafted."""
    max_sessions: int = 1

    @classmethod
    def of(cls, num_tokens: int, max_sessions: int | None = None) -> DraftLimits:
        """Draft for as many sessions as `FEW_TOKENS` hold with their drafts, unless something else was asked for."""
        return cls(num_tokens, max_sessions or max(1, FEW_TOKENS // (num_tokens + 1)))
