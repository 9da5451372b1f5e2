"""The captions that a layout is judged by."""

from __future__ import annotations

from dataclasses import dataclass

SESSIONS_PER_STEP = 256
"""Sessions of a decode step beyond which a GPU gains little; the stages' `--max-step-sessions`."""
MAX_STEP_TOKENS = 4096
"""Tokens of the largest microbatch: the stages' `--max-batch-tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One caption, and how many are asked for at a time. The default is that of docs/benchmarks.md."""

    num_prompt_tokens: int = 227
    """Visual tokens included."""
    num_visual_tokens: int = 196
    num_output_tokens: int = 64
    num_sessions: int | None = None
    """Sessions in flight on all routes together; None lets the planner choose."""
    experts_share: float = 0.5
    """Of a layer's experts, those that any token of a large microbatch chooses. Half is what makes four stages of 235B
    as fast as they were with random weights (53.7 and 63.4 captions/s); where all are chosen, a step takes longer."""

    @property
    def num_session_tokens(self) -> int:
        """Tokens of KV that a session reserves."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_computed_tokens(self) -> int:
        """Tokens of a caption that pass through the stages: the last one is sampled and not computed."""
        return self.num_session_tokens - 1

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a session has in a microbatch, on average: now and then a prompt, otherwise one."""
        return self.num_computed_tokens / self.num_output_tokens

    @property
    def mean_context(self) -> float:
        """Tokens of KV that a decode step reads of a session, on average."""
        return self.num_prompt_tokens + self.num_output_tokens / 2
