"""How fast sessions should begin: a little faster than they end. Pure.

Sessions of a burst of prompts that is computed as fast as possible end at about the same time as well, and from then on
waves of prompts alternate with waves of single tokens: microbatches are unequal, so that stages wait for each other.

    without   PPPPPPPP t t t t t t t t t t PPPPPPPP t t t …      P: microbatches full of prompts
    with      PPPPPPPP t t Pt Pt t Pt Pt Pt Pt Pt Pt Pt …        t: one token of each session

In a steady state, every token that a session gets lets in so many tokens of prompts as sessions have of these for each
token of their outputs. That number is learned from those that end; before the first one does, nothing is held back.
Where more sessions could run than do, prompts come at the pace of all of these: a pipeline that is filled takes as long
for it as a session lasts, and is spread evenly over that time.
"""

from __future__ import annotations

_WEIGHT = 1 / 256  # of the newest session, once there were as many
_HASTE = 1.25  # over the steady state: room that has become free is taken again, though not at once


class PromptPace:
    """Tokens of prompts that a microbatch should take along, by the sessions that end."""

    def __init__(self) -> None:
        self._ratio = 0.0
        self._num_seen = 0

    def observe(self, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Learn from a session that has ended with an output."""
        self._num_seen += 1
        self._ratio += max(_WEIGHT, 1 / self._num_seen) * (num_prompt_tokens / num_output_tokens - self._ratio)

    def num_tokens(self, num_places: int) -> float:
        """Return how many tokens of prompts go with a token for each of `num_places`; endless if nothing is known."""
        return _HASTE * num_places * self._ratio if self._num_seen else float("inf")
