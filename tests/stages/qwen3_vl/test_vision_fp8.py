"""The tower with its blocks in FP8: what is quantised, what a block makes of codes, how far rows are from bf16's."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from export.synthetic.shapes import shape_config
from stages.compute.fused.captured_tower import CapturedTower, capture_tower
from stages.compute.loading import load_vision
from stages.compute.options import ComputeOptions
from stages.kernels.codes.row_codes import RowCodes
from stages.kernels.fp8.block_products import has_library_product, kernel_product, library_product
from stages.qwen3_vl.attention import EagerAttention, attention_named
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.tensors import VISION_PREFIX, vision_shapes
from stages.qwen3_vl.vision import TowerEncoder, TowerOutput, VisionTower
from stages.qwen3_vl.vision_ops import FusedVisionOps, Product
from stages.qwen3_vl.vision_places import BatchPlaces
from stages.random_weights import draw_weights
from stages.weights.fp8_matrix import Fp8Matrix, plain, quantise
from stages.weights.tower_in_fp8 import tower_in_fp8

GRIDS = [PatchGrid(1, 28, 28), PatchGrid(2, 16, 20), PatchGrid(1, 4, 2)]
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cache
def config_8b() -> ModelConfig:
    """The published tower with few blocks."""
    whole = shape_config("8B")
    return dataclasses.replace(whole, vision=dataclasses.replace(whole.vision, depth=3, deepstack_indexes=(0, 1)))


@cache
def drawn(device: str) -> dict[str, Tensor]:
    """Weights at random; biases too, which are zeros as they are drawn."""
    weights = dict(draw_weights(vision_shapes(config_8b()), torch.device(device), torch.bfloat16))
    generator = torch.Generator().manual_seed(2)
    for name, tensor in weights.items():
        if name.endswith(".bias"):
            weights[name] = (torch.randn(tensor.shape, generator=generator) / 2).to(tensor)
    return weights


def patches(grids: list[PatchGrid]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = sum(grid.num_patches for grid in grids), 768
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def test_the_matrices_of_blocks_are_quantised_and_nothing_else() -> None:
    tensors = drawn("cpu")
    found = tower_in_fp8(tensors)
    assert list(found) == list(tensors)
    names = {name.removeprefix(VISION_PREFIX) for name, weight in found.items() if isinstance(weight, Fp8Matrix)}
    kinds = ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")
    assert names == {f"blocks.{block}.{kind}.weight" for block in range(3) for kind in kinds}
    prefix = f"{VISION_PREFIX}blocks.1.mlp.linear_fc"
    assert (found[prefix + "1.weight"].shape, found[prefix + "1.bias"].shape) == ((4352, 1152), (4352,))
    for name, weight in found.items():
        if isinstance(weight, Fp8Matrix):
            rows, columns = tensors[name].shape
            assert weight.scales.stride(0) % 4 == 0
            values = plain(weight, torch.float32)
            assert torch.equal(values[:rows, :columns], plain(quantise(tensors[name]), torch.float32))
            assert not values[rows:].any()
            assert not values[:, columns:].any()


def test_on_a_cpu_the_values_are_those_of_the_codes() -> None:
    config, tensors = config_8b(), drawn("cpu")
    grids = [PatchGrid(1, 4, 4)]
    options = ComputeOptions(attention="eager", dtype="float32")
    in_fp8 = load_vision(config, tensors, dataclasses.replace(options, fp8_tower=True))
    found = in_fp8.encode(patches(grids), grids).rows
    rounded = {name: plain(weight, torch.float32) for name, weight in tower_in_fp8(tensors).items()}
    narrow = {name: rounded[name][tuple(slice(size) for size in tensor.shape)] for name, tensor in tensors.items()}
    want = load_vision(config, narrow, options).encode(patches(grids), grids).rows
    assert distance(found, want) < 1e-5
    plainly = load_vision(config, tensors, options).encode(patches(grids), grids).rows
    assert 1e-3 < distance(found, plainly) < 0.2


@pytest.mark.parametrize("library", [False, True])
def test_a_block_of_codes_is_a_block_of_values_within_their_rounding(device: torch.device, *, library: bool) -> None:
    """All but attention. Every bias is added once, by whatever reads the product."""
    if library and (device.type == "cpu" or not has_library_product(device)):
        pytest.skip("the library has no such product here")
    ops, generator = FusedVisionOps(library_product if library else kernel_product), torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    hidden, inner = 384, 640
    x, norm, norm_bias = random(24, hidden), random(hidden), random(hidden)
    weights = {"wide": random(inner, hidden) / 20, "narrow": random(hidden, inner) / 20}
    coded = {name: quantise(weight) for name, weight in weights.items()}
    biases = {"wide": random(inner), "narrow": random(hidden)}
    total, rows = ops.add_norm(x, Product(x, norm_bias), norm, norm_bias, coded["wide"])
    assert isinstance(rows, RowCodes)
    inside = ops.gelu_linear(rows, coded["wide"], biases["wide"], coded["narrow"])
    assert isinstance(inside, RowCodes)
    product = ops.linear(inside, coded["narrow"], biases["narrow"])
    _, found = ops.add_norm(total, product, norm, norm_bias, weights["wide"])

    values = {name: weight.dequantised(torch.float32) for name, weight in coded.items()}
    sums = x.float() + (x.float() + norm_bias.float())
    normed = F.layer_norm(sums, (hidden,), norm.float(), norm_bias.float(), 1e-6)
    wide = F.gelu(F.linear(normed, values["wide"], biases["wide"].float()), approximate="tanh")
    sums = sums + F.linear(wide, values["narrow"], biases["narrow"].float())
    assert isinstance(found, Tensor)
    assert distance(found, F.layer_norm(sums, (hidden,), norm.float(), norm_bias.float(), 1e-6)) < 0.05


@pytest.mark.gpu
@on_a_gpu
def test_rows_in_fp8_are_near_those_of_bf16_as_graphs_and_launched() -> None:
    config, tensors = config_8b(), drawn("cuda")
    shown = patches(GRIDS).pin_memory()
    exact = VisionTower(
        config, {name: tensor.float() for name, tensor in tensors.items()}, attention_named("sdpa")
    ).encode(shown, GRIDS)
    tower = load_vision(config, tensors, ComputeOptions("cuda", fp8_tower=True))
    assert sum(isinstance(weight, Fp8Matrix) for weight in tower._matrices.values()) == 12
    launched = tower.encode(shown, GRIDS)
    assert _furthest(launched, exact) < 0.1
    captured = capture_tower(tower, 2048)
    assert isinstance(captured, CapturedTower)
    assert captured.size_for(GRIDS) is not None
    assert _furthest(captured.encode(shown, GRIDS), exact) < 0.1
    assert _same_alone(captured)


def _same_alone(captured: TowerEncoder) -> bool:
    """Say whether a picture has the same rows beside others in a graph of as many patches."""
    pair = [GRIDS[0], PatchGrid(1, 20, 28)]
    shown = patches(pair)
    num_rows = GRIDS[0].num_patches // 4
    both = captured.encode(shown, pair).rows[:, :num_rows].clone()
    shown[GRIDS[0].num_patches :] = 7
    return torch.equal(both, captured.encode(shown, pair).rows[:, :num_rows])


def _furthest(found: TowerOutput, expected: TowerOutput) -> float:
    return max(distance(a, b) for a, b in zip(found.rows, expected.rows, strict=True))


class _AttendedEagerly(FusedVisionOps):
    """The kernels of a GPU, less attention, which no interpreter has."""

    def attend(self, qkv: Product, head_dim: int, places: BatchPlaces) -> Tensor:
        rows = qkv.rows.view(len(qkv.rows), 3, -1, head_dim)
        self._rotate(rows, places.cos, places.sin, qkv.bias)
        return EagerAttention().attend_frames(*rows.unbind(1), places.lengths).flatten(1)


def test_a_whole_tower_of_codes_has_every_bias_once() -> None:
    config, device = shape_config("tiny"), torch.device("cpu")
    generator = torch.Generator().manual_seed(4)
    weights = dict(draw_weights(vision_shapes(config), device, torch.bfloat16))
    weights |= {
        name: (torch.randn(tensor.shape, generator=generator) / 2).to(tensor)
        for name, tensor in weights.items()
        if name.endswith(".bias")
    }
    grids = [PatchGrid(1, 4, 4), PatchGrid(1, 2, 6)]
    coded = tower_in_fp8(weights)
    values = {name: plain(weight, torch.float32) for name, weight in coded.items()}
    shown = patches(grids)
    exact = VisionTower(config, values, EagerAttention()).encode(shown, grids)
    found = VisionTower(config, coded, EagerAttention(), _AttendedEagerly(kernel_product)).encode(shown, grids)
    assert _furthest(found, exact) < 0.06, "without one of the biases it is 0.18 and more"
