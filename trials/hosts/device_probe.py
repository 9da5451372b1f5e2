"""What a host's devices take for a block of a model and for its tower: what `bench stage` and `bench tower` time."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from export.synthetic.shapes import shape_config
from stages.device.choice import choose_device
from stages.device.hardware import free_bytes
from trials.bench.stage.rows import StageBenchSettings, StageRow
from trials.bench.stage.step_timing import measure_stage
from trials.bench.tower.measurement import TowerBenchSettings, measure_tower
from trials.bench.work import num_visual_tokens
from trials.hosts.probe_file import ProbedDevice, ProbedStep


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is timed; a processor takes seconds for what a GPU does in milliseconds."""

    batch_sizes: tuple[int, ...]
    prompts: tuple[int, ...]
    pictures: int
    num_steps: int
    num_warm_up: int


_GPU = Effort(batch_sizes=(1, 64, 256), prompts=(1, 8), pictures=15, num_steps=30, num_warm_up=5)
_PROCESSOR = Effort(batch_sizes=(1, 16), prompts=(1,), pictures=1, num_steps=5, num_warm_up=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProbe:
    """What to time on each device."""

    shape: str
    num_layers: int
    context: int
    """Tokens that a session holds in decode steps, and that a prompt has."""
    picture_side: int

    def measure(self, name: str) -> ProbedDevice:
        """Time a device; raises `ConfigurationError` where there is none, or the shape is not possible."""
        device = choose_device(name)
        effort = _GPU if device.type == "cuda" else _PROCESSOR
        memory = _memory(device)
        rows = self._steps(str(device), effort)
        _release(device)
        picture_s = self._picture_s(str(device), effort)
        _release(device)
        return ProbedDevice(
            device=str(device),
            name=_name(device),
            total_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            decode=self._per_layer(rows, "decode"),
            prefill=self._per_layer(rows, "prefill"),
            picture_s=picture_s,
            num_visual_tokens=num_visual_tokens(self.picture_side),
        )

    def _steps(self, device: str, effort: Effort) -> Sequence[StageRow]:
        settings = StageBenchSettings(
            shape=self.shape,
            num_layers=self.num_layers,
            batch_sizes=effort.batch_sizes,
            context=self.context,
            prefill_prompts=effort.prompts,
            mixed=(),
            num_steps=effort.num_steps,
            num_warm_up=effort.num_warm_up,
            device=device,
            dtype=None,
            num_threads=None,
            is_deterministic=None,
        )
        return measure_stage(settings).rows

    def _per_layer(self, rows: Sequence[StageRow], kind: str) -> tuple[ProbedStep, ...]:
        return tuple(
            ProbedStep(num_sessions=row.num_sessions, num_tokens=row.num_tokens, layer_s=_step_s(row) / self.num_layers)
            for row in rows
            if row.kind == kind
        )

    def _picture_s(self, device: str, effort: Effort) -> float:
        """Return the seconds of the tower for each picture of a batch, the next ones enqueued meanwhile."""
        settings = TowerBenchSettings(
            shape=self.shape,
            batches=(effort.pictures,),
            sides=(self.picture_side,),
            num_steps=effort.num_steps,
            num_warm_up=effort.num_warm_up,
            device=device,
            max_batch_patches=12_288,
        )
        return measure_tower(settings).rows[0].in_turn_s / effort.pictures


def most_layers(shape: str) -> int:
    """Return the layers of a shape; raises `ConfigurationError` where there is none of this name."""
    return shape_config(shape).text.num_layers


def _step_s(row: StageRow) -> float:
    """Return what a step takes of the device: as a pipeline drives it, where that was timed."""
    best = row.queued_s or row.device_s or row.step_s
    return best.median


def _release(device: torch.device) -> None:
    """Give back the memory of what was timed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device."""

    total_bytes: int
    free_bytes: int


def processor_memory() -> Memory:
    """Return the memory of the host itself."""
    return _memory(torch.device("cpu"))


def _memory(device: torch.device) -> Memory:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(int(total), int(free))
    return Memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), free_bytes(device))
