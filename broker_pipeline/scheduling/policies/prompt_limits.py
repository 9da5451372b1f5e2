"""How long prompt and output may be together. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.errors import PromptTooLongError


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """`num_asked` output tokens were asked for (None: none in particular), of `max_tokens_in_all` that fit."""

    num_asked: int | None
    num_default: int
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

    def max_tokens(self, num_prompt_tokens: int) -> int:
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
        return self.num_asked or min(self.num_default, room)

    def _reason(self) -> str:
        if self.max_position_embeddings <= self.kv_capacity_tokens:
            return f"the model takes {self.max_position_embeddings} tokens in all"
        return f"the stages have room for {self.kv_capacity_tokens} tokens in all"
