"""How much KV a session should have: what its tokens need, and some ahead. Pure.

prompt │ tokens so far │ step ┊                          limit
prompt │ what outputs usually come to   ┊                limit
                                        └ whichever is more, at most the limit
"""

from __future__ import annotations

_WEIGHT = 0.05


class KVSteps:
    """Learns how long outputs are, so that few sessions have to grow and none reserves its whole limit."""

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._usual_output = 0.0
        self._num_learned = 0

    def learn(self, num_output_tokens: int) -> None:
        """Learn from an output that has ended."""
        self._num_learned += 1
        weight = max(_WEIGHT, 1 / self._num_learned)
        self._usual_output += weight * (num_output_tokens - self._usual_output)

    def num_tokens(self, num_prompt_tokens: int, num_tokens: int, limit: int) -> int:
        """Return the tokens to reserve for a session that has `num_tokens`, of which the prompt is a part."""
        return min(limit, max(num_tokens + self._step_tokens, num_prompt_tokens + round(self._usual_output)))
