"""What `bench stage` is asked, and what it answers."""

from __future__ import annotations

from typing import Literal

import msgspec

from stages.cached_heads import KVDtype
from stages.compute.options import Fp8Product
from trials.bench.spread import Spread
from trials.bench.stage.floor import DeviceRates


class StageBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. The stage owns the first `num_layers` layers; only with all of them it has the head."""

    shape: str
    num_layers: int | None
    batch_sizes: tuple[int, ...]
    context: int
    """Tokens that a session holds when it is decoded, and that a prompt has."""
    prefill_prompts: tuple[int, ...]
    """Numbers of prompts that are prefilled together."""
    mixed: tuple[tuple[int, int], ...]
    """Sessions that are decoded and prompts that are prefilled in the same step."""
    num_steps: int
    num_warm_up: int
    device: str
    dtype: str | None
    quantize: str | None = None
    fp8_product: Fp8Product = "auto"
    kv_dtype: KVDtype = "auto"
    num_threads: int | None
    is_deterministic: bool | None

    @property
    def num_tokens_most(self) -> int:
        """Tokens of the largest step."""
        prompts = max((*self.prefill_prompts, *(prompts for _, prompts in self.mixed)), default=0)
        return self.num_decoded_most + prompts * self.context

    @property
    def num_decoded_most(self) -> int:
        """Sessions of the largest decode step."""
        return max((*self.batch_sizes, *(decoded for decoded, _ in self.mixed)), default=0)

    @property
    def num_kv_tokens(self) -> int:
        """KV of the most sessions that are open at a time."""
        room = self.context + self.num_warm_up + self.num_steps
        prompts = max((*self.prefill_prompts, *(prompts for _, prompts in self.mixed)), default=0)
        in_turn = max(self.batch_sizes, default=0)  # a second set of sessions, decoded in turn with the first
        return (self.num_decoded_most + prompts + in_turn) * room


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of step."""

    kind: Literal["decode", "prefill", "mixed"]
    num_sessions: int
    num_tokens: int
    step_s: Spread
    launch_s: Spread
    """Of these, until the host has handed everything to the device; on the CPU that is the computation itself."""
    device_s: Spread | None
    """From the device's first to its last work for a step; None on the CPU."""
    queued_s: Spread | None = None
    """From one step's end to the next one's where it was enqueued meanwhile; decode steps on a GPU only."""
    floor_s: float
    bound: str
    """What sets the floor: "memory" or "compute"."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens computed per second."""
        return self.num_tokens / self.step_s.median

    @property
    def floor_share(self) -> float:
        """The floor as a part of what the step takes: 1 could not be better."""
        return self.floor_s / self.step_s.median


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """The device's rates, and what the stage makes of them."""

    rates: DeviceRates
    num_weight_bytes: int
    load_s: float
    """Seconds for drawing the weights, and on a GPU for building kernels and graphs."""
    rows: tuple[StageRow, ...]
