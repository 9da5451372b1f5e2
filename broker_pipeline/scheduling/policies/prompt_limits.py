"""How long prompt and output may be together. Pure.

output limit            of a job
──────────────────────  ──────────────────────────────────────────────────────────────────────────────────────────
that it asks for        that does, or it fails: nothing is cut that somebody asked for
the pipeline's default  that asks for none, cut to the room that the prompt leaves; what is stated (by a flag, else
                        by the model's generation_config), else a share of the room, so that `_NUM_SHARES` such
                        sessions fit next to each other: a session's KV is reserved up to its limit
"""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.errors import PromptTooLongError
from broker_pipeline.messages.status import SessionLimits

MIN_TOKENS_IN_ALL = 2
"""A prompt, and an output."""
_NUM_SHARES = 256
_LEAST_TOKENS, _MOST_TOKENS = 512, 4096
_REASONING = 8
"""How many times as much reasoning and an answer take together."""


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """`num_asked` output tokens were asked for (None: none in particular), of `max_tokens_in_all` that fit."""

    num_asked: int | None
    num_stated: int | None
    max_position_embeddings: int
    kv_capacity_tokens: int

    def __post_init__(self) -> None:
        if self.max_prompt_tokens < 1:
            raise PromptTooLongError(
                f"{self.num_asked} output tokens leave no room for a prompt: {self._reason()}",
                field="sampling.max_tokens",
            )

    @property
    def max_tokens_in_all(self) -> int:
        """Tokens of prompt and output together."""
        return min(self.max_position_embeddings, self.kv_capacity_tokens)

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens that the prompt may have."""
        return self.max_tokens_in_all - (self.num_asked or 1)

    def default_max_tokens(self, *, is_reasoning: bool) -> int:
        """Return the output limit of jobs that ask for none, where the prompt leaves room for it."""
        if self.num_stated is not None:
            return self.num_stated
        share = min(max(self.max_tokens_in_all // _NUM_SHARES, _LEAST_TOKENS), _MOST_TOKENS)
        return share * _REASONING if is_reasoning else share

    def max_tokens(self, num_prompt_tokens: int, *, is_reasoning: bool = False) -> int:
        """Return the output limit; raises `PromptTooLongError` when prompt and output do not fit.

        Only a limit that nobody asked for is cut to what fits.
        """
        room = self.max_tokens_in_all - num_prompt_tokens
        if room < (self.num_asked or 1):
            asked = f"{self.num_asked} output tokens" if self.num_asked else "an output"
            raise PromptTooLongError(
                f"the prompt has {num_prompt_tokens} tokens, and with {asked} it does not fit: {self._reason()}",
                field="messages",
            )
        return self.num_asked or min(self.default_max_tokens(is_reasoning=is_reasoning), room)

    def shown(self) -> SessionLimits:
        """Return what `status` shows, and gateways hold jobs to."""
        return SessionLimits(
            max_tokens_in_all=self.max_tokens_in_all,
            max_position_embeddings=self.max_position_embeddings,
            default_max_tokens=self.default_max_tokens(is_reasoning=False),
            default_max_tokens_reasoning=self.default_max_tokens(is_reasoning=True),
        )

    def _reason(self) -> str:
        if self.max_position_embeddings <= self.kv_capacity_tokens:
            return f"the model takes {self.max_position_embeddings} tokens in all"
        return f"the stages have room for {self.kv_capacity_tokens} tokens in all"
