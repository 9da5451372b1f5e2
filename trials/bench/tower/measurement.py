"""The tower's batches by themselves: pictures of noise, random weights, one batch after the other.

alone    |── launch ──|··· waiting ···|                  from patches on the host to visual rows, each picture's own
in turn  |── launch ──|── launch ──|── launch ──| …      enqueued one behind the other, as a busy worker does
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from export.synthetic.shapes import shape_config
from stages.compute.fused.captured_tower import CapturedTower, capture_tower
from stages.compute.loading import compute_dtype, load_vision, vision_tensor_names
from stages.compute.options import ComputeOptions
from stages.device.choice import choose_device
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision import TowerEncoder
from stages.qwen3_vl.vision_config import VisionConfig
from stages.random_weights import DrawnTensors
from trials.bench.options import say
from trials.bench.spread import Spread
from trials.bench.stage.floor import synchronize


class TowerBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    shape: str
    batches: tuple[int, ...]
    """Numbers of pictures that are encoded together."""
    sides: tuple[int, ...]
    """Pixels of the pictures' sides, in turn."""
    num_steps: int
    num_warm_up: int
    device: str
    max_batch_patches: int
    fp8: bool = False
    """Whether its blocks are in FP8."""


class TowerRow(msgspec.Struct, frozen=True, kw_only=True):
    """Batches of one size, launched one way."""

    way: str
    num_pictures: int
    num_patches: int
    num_computed: int
    """Patches that were computed, with those that fill up a graph."""
    step_s: Spread
    launch_s: Spread
    """Of these, until the host was free again; on the CPU that is the computation itself."""
    in_turn_s: float
    """For one batch, where the next ones were enqueued meanwhile."""


class TowerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to have graphs, and what they are worth."""

    capture_s: float
    graph_bytes: int
    """Memory of the GPU that graphs and their buffers keep."""
    rows: tuple[TowerRow, ...]


@torch.inference_mode()
def measure_tower(settings: TowerBenchSettings) -> TowerReport:
    """Make a tower of random weights and time its batches.

    Raises:
        ConfigurationError: shape or device are not possible.
    """
    config, device = shape_config(settings.shape), choose_device(settings.device)
    weights = DrawnTensors(vision_tensor_names(config), device, compute_dtype(config, None))
    tower = load_vision(config, weights, ComputeOptions(str(device), fp8_tower=settings.fp8))
    say("building graphs")
    before, started = _reserved_bytes(device), time.perf_counter()
    captured = capture_tower(tower, settings.max_batch_patches)
    synchronize(device)
    capture_s, graph_bytes = time.perf_counter() - started, _reserved_bytes(device) - before
    ways: dict[str, TowerEncoder] = {"launched": tower}
    if isinstance(captured, CapturedTower):
        ways = {"graph": captured, **ways}
    rows = [_measure(name, way, num, settings) for num in settings.batches for name, way in ways.items()]
    return TowerReport(capture_s=capture_s, graph_bytes=graph_bytes, rows=tuple(rows))


def _measure(name: str, tower: TowerEncoder, num_pictures: int, settings: TowerBenchSettings) -> TowerRow:
    say(f"{name}, {num_pictures} pictures")
    grids = _grids(num_pictures, settings.sides, tower.config)
    patches, device = _noise(grids, tower), tower.device
    counts = [grid.num_patches // tower.config.merge_factor for grid in grids]
    size = tower.size_for(grids) if isinstance(tower, CapturedTower) else None

    def launch() -> None:
        tower.encode(patches, grids).split(counts)

    for _ in range(settings.num_warm_up):
        launch()
    steps = [_alone(launch, device) for _ in range(settings.num_steps)]
    started = time.perf_counter()
    for _ in range(settings.num_steps):
        launch()
    synchronize(device)
    return TowerRow(
        way=name,
        num_pictures=num_pictures,
        num_patches=len(patches),
        num_computed=size or len(patches),
        step_s=Spread.of([step_s for step_s, _ in steps]),
        launch_s=Spread.of([launch_s for _, launch_s in steps]),
        in_turn_s=(time.perf_counter() - started) / settings.num_steps,
    )


def _alone(launch: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Return the seconds of one batch, and those of its launch."""
    synchronize(device)
    started = time.perf_counter()
    launch()
    launched = time.perf_counter()
    synchronize(device)
    return time.perf_counter() - started, launched - started


def _grids(num_pictures: int, sides: Sequence[int], config: VisionConfig) -> list[PatchGrid]:
    cells = [max(1, side // config.pixel_factor) * config.spatial_merge_size for side in sides]
    return [PatchGrid(1, cells[index % len(cells)], cells[index % len(cells)]) for index in range(num_pictures)]


def _noise(grids: Sequence[PatchGrid], tower: TowerEncoder) -> Tensor:
    """Return patches of still pictures, in page-locked memory where a GPU takes them from it."""
    config = tower.config
    shape = sum(grid.num_patches for grid in grids), config.patch_values // config.temporal_patch_size
    patches = torch.randint(0, 256, shape, dtype=torch.uint8)
    return patches.pin_memory() if tower.device.type == "cuda" else patches


def _reserved_bytes(device: torch.device) -> int:
    """Return what the process holds of the GPU for tensors that there are."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)
