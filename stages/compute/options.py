"""Where and how to compute."""

from __future__ import annotations

from dataclasses import dataclass

from stages.qwen3_vl.attention import AttentionName


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """Where and how to compute. `dtype` None takes the checkpoint's own."""

    device: str = "cpu"
    dtype: str | None = None
    attention: AttentionName = "auto"
    is_deterministic: bool = False
    """Whether a session's tokens must not depend on what else shares its microbatches; slower."""
    max_batch_tokens: int = 4096
    """Tokens of the largest microbatch, for which memory is kept free on a GPU."""
    max_step_sessions: int = 256
    """Sessions of the largest decode step that is captured on a GPU; 0 captures none."""
