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
    asked_token_ids: frozenset[int] = frozenset()
    """Those of them that were asked for."""
    stop: tuple[str, ...] = ()
    repetition: RepetitionDetection | None = None

    def reason(
        self, token_ids: Sequence[int], *, is_stopped: bool = False, is_repeating: bool = False
    ) -> FinishReason | None:
        """Return why the output ends with the last of its tokens; None where it does not.

        `is_stopped`: a stop string is complete with it. `is_repeating`: the output is nothing but a pattern by now.
        """
        may_stop = len(token_ids) > self.min_tokens
        if is_stopped or token_ids[-1] in self.end_token_ids:
            return "stop"
        if may_stop and is_repeating:
            return "repetition"
        return "length" if len(token_ids) >= self.max_tokens else None
