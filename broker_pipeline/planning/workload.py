"""The captions that a layout is judged by."""

from __future__ import annotations

from dataclasses import dataclass

SESSIONS_PER_STEP = 256
"""Sessions of a decode step beyond which a GPU gains little; the stages' `--max-step-sessions`."""
MAX_STEP_TOKENS = 4096
"""Tokens of the largest microbatch: the stages' `--max-batch-tokens`, but on small GPUs."""
_SMALL_GPU_BYTES = 32 * 10**9


def most_step_tokens(memory_bytes: int) -> int:
    """Return the tokens of the largest microbatch of a GPU: on a small one they would leave too little for KV."""
    return MAX_STEP_TOKENS if memory_bytes >= _SMALL_GPU_BYTES else MAX_STEP_TOKENS // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One caption, and how many are asked for at a time. The default is that of docs/benchmarks.md."""

    num_prompt_tokens: int = 227
    """Visual tokens included."""
    num_visual_tokens: int = 196
    num_output_tokens: int = 64
    picture_bytes: int = 100_000
    """Of a picture's file: a JPEG of 448 x 448 pixels that is full of detail."""
    num_sessions: int | None = None
    """Sessions in flight on all routes together; None lets the planner choose."""
    num_captions: int | None = None
    """Captions of the whole round, which has a ramp and a tail; None where that is not known."""
    experts_share: float = 0.5
    """Of a layer's experts, those that any token of a large microbatch chooses. Half is what makes four stages of 235B
    as fast as they were with random weights (53.7 and 63.4 captions/s); where all are chosen, a step takes longer."""

    @property
    def num_session_tokens(self) -> int:
        """Tokens of KV that a session comes to. It reserves less before its end, which a plan does not count on."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_computed_tokens(self) -> int:
        """Tokens of a caption that pass through the stages: the last one is sampled and not computed."""
        return self.num_session_tokens - 1

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a session has in a microbatch, on average: now and then a prompt, otherwise one."""
        return self.num_computed_tokens / self.num_output_tokens

    def round_share(self, num_sessions: int) -> float | None:
        """Return the rate of the whole round as a part of the rate while the pipeline is full, None if not known.

        Captions end one after the other from when the first was prepared until the last, whose sessions began
        together with many others': a round takes as long as all of its captions, and once more as one set of sessions.
        """
        return None if self.num_captions is None else self.num_captions / (self.num_captions + num_sessions)

    @property
    def mean_context(self) -> float:
        """Tokens of KV that a decode step reads of a session, on average."""
        return self.num_prompt_tokens + self.num_output_tokens / 2
