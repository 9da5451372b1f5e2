"""Experts in FP8: every kernel against the eager path on dequantised values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.experts.blocks import sorted_down, sorted_gate_up
from stages.kernels.experts.mlp import fused_experts, tilings_in_fp8
from stages.kernels.experts.sort import sort_by_expert
from stages.kernels.experts.tiling import MAX_PAIR_ROWS
from stages.kernels.tiling import Tiling
from stages.qwen3_vl.moe import eager_experts
from stages.weights.fp8_matrix import Fp8Matrix, quantise
from tests.kit.models.fp8_rows import rounded

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter's products of bf16 are wrong
NUM_EXPERTS, INNER, HIDDEN = 5, 128, 200  # the last blocks of scales are cut short


def experts(num_rows: int, num_columns: int, device: torch.device, num_experts: int = NUM_EXPERTS) -> Fp8Matrix:
    """Experts whose blocks differ in size, so that a wrong scale is noticed."""
    generator = torch.Generator(device).manual_seed(num_rows)
    blocks = torch.arange(num_rows, device=device)[:, None] // 128 + torch.arange(num_columns, device=device) // 128
    drawn = [
        quantise(
            torch.randn(num_rows, num_columns, generator=generator, device=device)
            * torch.exp2((blocks + expert) % 4 - 2.0)
            / num_columns**0.5
        )
        for expert in range(num_experts)
    ]
    codes = torch.stack([each.codes.view(torch.uint8) for each in drawn]).view(torch.float8_e4m3fn)
    return Fp8Matrix(codes, torch.stack([each.scales for each in drawn]))


def chosen_of(n: int, num_chosen: int, device: torch.device, num_experts: int = NUM_EXPERTS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    chosen = torch.rand(n, num_experts, generator=generator).argsort(dim=1)[:, :num_chosen].sort(dim=1).values
    return chosen.to(device), torch.rand(n, num_chosen, generator=generator).to(device)


def distance(parts: Tensor, x: Tensor, routed: tuple[Tensor, Tensor], weights: tuple[Fp8Matrix, Fp8Matrix]) -> float:
    """Of what the kernels found, summed over choices, from the eager path in fp32."""
    have = parts.float() if parts.dim() == 2 else parts.float().sum(dim=1)
    want = eager_experts(
        x.float(), routed[0], routed[1].float(), *(each.dequantised(torch.float32) for each in weights)
    )
    return float((have - want).norm() / want.norm())


@pytest.mark.parametrize(
    ("n", "dtype", "deterministic"),
    [
        (1, torch.float32, False),
        (MAX_PAIR_ROWS, HALF, False),
        (MAX_PAIR_ROWS + 1, HALF, False),
        (20, torch.float32, False),
        (3, HALF, True),
    ],
)
def test_codes_are_multiplied_as_values(device, dtype, n, deterministic) -> None:
    weights = experts(2 * INNER, HIDDEN, device), experts(HIDDEN, INNER, device)
    x = torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(n)).to(device, dtype)
    chosen, shares = chosen_of(n, 3, device)
    parts = fused_experts(x, chosen, shares.to(dtype), *weights, deterministic=deterministic)
    assert distance(parts, x, (chosen, shares.to(dtype)), weights) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("tiling", [Tiling(16, 32, 128), Tiling(16, 64, 64, swap=True), Tiling(32, 16, 32)])
def test_tilings_agree(device, tiling) -> None:
    weights = experts(2 * INNER, HIDDEN, device), experts(HIDDEN, INNER, device)
    x = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(2)).to(device)
    chosen, shares = chosen_of(20, 2, device)
    order, starts = sort_by_expert(chosen, NUM_EXPERTS)
    activated = sorted_gate_up(x, order, starts, weights[0], 2, tiling)
    parts = sorted_down(activated, order, starts, shares, weights[1], tiling)
    assert distance(parts, x, (chosen, shares), weights) < 1e-5


def test_rows_in_fp8_are_rounded_before_each_product(device) -> None:
    weights = experts(2 * INNER, HIDDEN, device, 2), experts(HIDDEN, INNER, device, 2)
    n = 101
    x = torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(2)).to(device, HALF)
    assert tilings_in_fp8(x, 2 * n, *weights)
    chosen, shares = chosen_of(n, 2, device, 2)
    shares = shares.to(HALF)
    parts = fused_experts(x, chosen, shares, *weights, rows_in_fp8=True)
    values = [each.dequantised(torch.float32) for each in weights]
    for expert in range(2):
        gate, up = (rounded(x) @ values[0][expert].t()).to(HALF).chunk(2, dim=-1)
        want = rounded(F.silu(gate) * up) @ values[1][expert].t() * shares[:, expert : expert + 1].float()
        assert float((parts[:, expert].float() - want).norm() / want.norm()) < 1e-2
    assert distance(parts, x, (chosen, shares), weights) < 0.06


@pytest.mark.parametrize(("n", "are_rounded"), [(MAX_PAIR_ROWS, False), (MAX_PAIR_ROWS + 1, True)])
def test_more_than_a_few_rows_are_rounded(device, n: int, are_rounded: bool) -> None:
    weights = experts(2 * INNER, HIDDEN, device), experts(HIDDEN, INNER, device)
    x = torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(n)).to(device, HALF)
    chosen, shares = chosen_of(n, 3, device)
    routed = chosen, shares.to(HALF)
    off = distance(fused_experts(x, *routed, *weights, rows_in_fp8=True), x, routed, weights)
    assert (off > 0.02) == are_rounded
    assert off < (0.06 if are_rounded else 0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [5, 30, 80, 120, 600])
@pytest.mark.parametrize(("hidden", "inner"), [(2048, 768), (4096, 1536)])
def test_rows_in_fp8_of_published_shapes_on_a_gpu(n, hidden, inner) -> None:
    device = torch.device("cuda")
    weights = experts(2 * inner, hidden, device, 32), experts(hidden, inner, device, 32)
    x = torch.randn(n, hidden, device=device, dtype=torch.bfloat16)
    chosen, shares = chosen_of(n, 8, device, 32)
    routed = chosen, shares.to(torch.bfloat16)
    assert tilings_in_fp8(x, chosen.numel(), *weights)
    assert distance(fused_experts(x, *routed, *weights, rows_in_fp8=True), x, routed, weights) < 0.06


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 4, 16, 64, 600])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("hidden", "inner"), [(2048, 768), (4096, 1536)])
def test_published_shapes_on_a_gpu(n, deterministic, hidden, inner) -> None:
    """Against fp32, and the same bits when captured; 32 experts of 128, so that references fit."""
    device = torch.device("cuda")
    weights = experts(2 * inner, hidden, device, 32), experts(hidden, inner, device, 32)
    x = torch.randn(n, hidden, device=device, dtype=torch.bfloat16)
    chosen, shares = chosen_of(n, 8, device, 32)
    routed = chosen, shares.to(torch.bfloat16)
    have = fused_experts(x, *routed, *weights, deterministic=deterministic)
    assert distance(have, x, routed, weights) < 1e-2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fused_experts(x, *routed, *weights, deterministic=deterministic)
    graph.replay()
    assert torch.equal(captured, have)


@pytest.mark.gpu
def test_deterministic_rows_ignore_the_other_rows() -> None:
    device = torch.device("cuda")
    weights = experts(1536, 2048, device, 32), experts(2048, 768, device, 32)
    x = torch.randn(600, 2048, device=device, dtype=torch.bfloat16)
    chosen, shares = chosen_of(600, 8, device, 32)
    shares = shares.to(torch.bfloat16)
    together = fused_experts(x, chosen, shares, *weights, deterministic=True)
    for few in (slice(0, 1), slice(3, 9), slice(100, 300)):
        assert torch.equal(fused_experts(x[few], chosen[few], shares[few], *weights, deterministic=True), together[few])
