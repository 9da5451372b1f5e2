"""Where and how to compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.cached_heads import KVDtype
from stages.qwen3_vl.attention import AttentionName

Fp8Product = Literal["auto", "library", "kernel", "weight-only"]


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """Where and how to compute. `dtype` None takes the checkpoint's own."""

    device: str = "cpu"
    dtype: str | None = None
    attention: AttentionName = "auto"
    fp8_product: Fp8Product = "auto"
    """How many rows meet weights in FP8 on a GPU: by the library or a kernel, rows in FP8 too, or by codes alone."""
    kv_dtype: KVDtype = "auto"
    is_deterministic: bool | None = None
    """Whether a session's tokens must not depend on what else shares its microbatches. None: where that costs little,
    which is with the kernels for GPUs and weights in 16 bits."""
    fp8_tower: bool = False
    """Whether the vision tower's blocks are quantised to FP8 when they are loaded."""
    max_batch_tokens: int = 4096
    """Tokens of the largest microbatch, for which memory is kept free on a GPU."""
    max_step_sessions: int = 256
    """Sessions of the largest decode step that is captured on a GPU; 0 captures none."""

    @property
    def kv_in_fp8(self) -> bool:
        """Whether keys and values are held in FP8."""
        return self.kv_dtype == "fp8"
