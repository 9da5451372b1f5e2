"""The tower's fast forms against its eager ones, on the GPU; the shapes of the published towers, few blocks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from export.synthetic.shapes import shape_config
from stages.compute.loading import load_vision
from stages.compute.options import ComputeOptions
from stages.qwen3_vl.attention import attention_named
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.tensors import vision_shapes
from stages.qwen3_vl.vision import TowerOutput, VisionTower
from stages.qwen3_vl.vision_ops import EagerVisionOps, FusedVisionOps, choose_vision_ops
from stages.random_weights import draw_weights
from stages.vision.device_bytes import patch_bytes

SDPA = attention_named("sdpa")
GRIDS = [PatchGrid(1, 28, 28), PatchGrid(2, 16, 20), PatchGrid(1, 4, 2), PatchGrid(1, 40, 30)]


def relative_error(found: TowerOutput, expected: TowerOutput) -> float:
    pairs = [(found.embeds, expected.embeds), *zip(found.levels, expected.levels, strict=True)]
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_rows_are_as_near_to_fp32_as_eager_ones() -> None:
    whole = shape_config("8B")
    config = dataclasses.replace(whole, vision=dataclasses.replace(whole.vision, depth=4, deepstack_indexes=(0, 1, 3)))
    device = torch.device("cuda")
    weights = draw_weights(vision_shapes(config), device, torch.bfloat16)
    rows = torch.randint(0, 256, (sum(grid.num_patches for grid in GRIDS), 768), dtype=torch.uint8)
    exact = VisionTower(config, {name: tensor.float() for name, tensor in weights.items()}, SDPA).encode(rows, GRIDS)
    eager = VisionTower(config, weights, SDPA, EagerVisionOps(SDPA)).encode(rows, GRIDS)
    chosen = VisionTower(config, weights, SDPA)
    assert isinstance(choose_vision_ops(SDPA, 72, device, torch.bfloat16), FusedVisionOps)
    assert relative_error(chosen.encode(rows, GRIDS), exact) <= 1.1 * relative_error(eager, exact) + 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("grids", [[PatchGrid(1, 28, 28)] * 8, [PatchGrid(1, 128, 128)]])
def test_a_batch_takes_no_more_memory_than_is_kept_free_for_it(grids: list[PatchGrid], *, fp8: bool) -> None:
    config, device = shape_config("8B"), torch.device("cuda")
    weights = draw_weights(vision_shapes(config), device, torch.bfloat16)
    tower = load_vision(config, weights, ComputeOptions("cuda", fp8_tower=fp8))
    num_patches = sum(grid.num_patches for grid in grids)
    rows = torch.zeros(num_patches, 768, dtype=torch.uint8)
    tower.encode(rows, grids)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    encoded = tower.encode(rows, grids)
    assert encoded.embeds.shape[0] == num_patches // 4
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.4 < taken / (num_patches * patch_bytes(config, torch.bfloat16)) <= 1


@pytest.mark.parametrize(
    ("attention", "head_dim", "dtype"),
    [("eager", 72, torch.bfloat16), ("sdpa", 12, torch.bfloat16), ("sdpa", 72, torch.float32)],
)
def test_what_has_no_fast_form_is_computed_step_by_step(attention: str, head_dim: int, dtype: torch.dtype) -> None:
    ops = choose_vision_ops(attention_named(attention), head_dim, torch.device("cuda"), dtype)
    assert isinstance(ops, EagerVisionOps)
    assert isinstance(choose_vision_ops(SDPA, 72, torch.device("cpu"), torch.bfloat16), EagerVisionOps)
