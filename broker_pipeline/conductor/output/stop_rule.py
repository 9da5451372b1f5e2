"""When a session has said enough. Pure.

    an end token          finish reason `stop`; the model's end of sequence, or a token that was asked for
    a stop string         `stop`; see `stop_strings`
    a pattern             `repetition`: the output ends with the same tokens several times in a row
    `max_tokens` tokens   `length`

None of the first three ends an output before it has more than `min_tokens` tokens, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker_pipeline.messages.jobs import FinishReason
from broker_pipeline.messages.sampling import RepetitionDetection


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """What ends one output."""

    max_tokens: int
    min_tokens: int = 0
    end_token_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    repetition: RepetitionDetection | None = None

    def may_stop(self, num_tokens: int) -> bool:
        """Whether anything but the limit may end an output with its last of `num_tokens` tokens."""
        return num_tokens > self.min_tokens

    def reason(self, token_ids: Sequence[int], *, is_stopped: bool) -> FinishReason | None:
        """Return why the output ends with the last of its tokens; `is_stopped`: a stop string is complete with it."""
        may_stop = self.may_stop(len(token_ids))
        if is_stopped or (may_stop and token_ids[-1] in self.end_token_ids):
            return "stop"
        if may_stop and self.repetition is not None and is_repeating(token_ids, self.repetition):
            return "repetition"
        return "length" if len(token_ids) >= self.max_tokens else None


def is_repeating(token_ids: Sequence[int], rule: RepetitionDetection) -> bool:
    """Whether `token_ids` end with one pattern, of a size that counts, `rule.min_count` times in a row."""
    for size in range(rule.min_pattern_size, rule.max_pattern_size + 1):
        num_needed = size * rule.min_count
        if num_needed > len(token_ids):
            return False
        if token_ids[-1] == token_ids[-1 - size] and token_ids[-num_needed:-size] == token_ids[size - num_needed :]:
            return True
    return False
