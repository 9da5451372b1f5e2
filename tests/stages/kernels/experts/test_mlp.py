"""Routing, sorting and the experts' products against the eager path and plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.experts.blocks import sorted_down, sorted_gate_up
from stages.kernels.experts.mlp import fused_experts
from stages.kernels.experts.pairs import pair_down, pair_gate_up
from stages.kernels.experts.routing import choose_experts
from stages.kernels.experts.sort import sort_by_expert
from stages.kernels.experts.tiling import MAX_PAIR_ROWS
from stages.kernels.matmul import invariant_linear
from stages.kernels.tiling import RowTiling, Tiling
from stages.qwen3_vl.moe import eager_experts, route

# fp16 stands for bf16 in the interpreter, whose products of bf16 are wrong.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
NUM_EXPERTS, INNER, HIDDEN = 6, 48, 80  # none is a multiple of a tile


def _random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(device, dtype)


def _block(n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = _random(n, HIDDEN, device=device, dtype=dtype)
    router = _random(NUM_EXPERTS, HIDDEN, device=device, dtype=dtype, scale=0.2)
    gate_up = _random(NUM_EXPERTS, 2 * INNER, HIDDEN, device=device, dtype=dtype, scale=0.15)
    down = _random(NUM_EXPERTS, HIDDEN, INNER, device=device, dtype=dtype, scale=0.15)
    return x, router, gate_up, down


def _choose(logits: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """Routing in plain torch, with ties broken as the kernel breaks them; halves have them often."""
    shares = F.softmax(logits, dim=-1, dtype=torch.float32)
    chosen = shares.sort(dim=-1, descending=True, stable=True).indices[:, :num_chosen].sort(dim=-1).values
    weights = shares.gather(1, chosen)
    return chosen, (weights / weights.sum(dim=-1, keepdim=True)).to(logits.dtype)


def _summed(parts: Tensor) -> Tensor:
    """Sum over choices, in their order, where it is still to be made."""
    if parts.dim() == 2:
        return parts
    total = parts[:, 0]
    for index in range(1, parts.shape[1]):
        total = total + parts[:, index]
    return total


def _routed(x: Tensor, router: Tensor, num_chosen: int, *, deterministic: bool) -> tuple[Tensor, Tensor]:
    return choose_experts(invariant_linear(x, router) if deterministic else F.linear(x, router), num_chosen)


def _sparse_block(
    x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, num_chosen: int, *, deterministic: bool = False
) -> Tensor:
    chosen, weights = _routed(x, router, num_chosen, deterministic=deterministic)
    return _summed(fused_experts(x, chosen, weights, gate_up, down, deterministic=deterministic))


def _tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": 2e-5, "rtol": 2e-5} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("num_experts", "num_chosen"), [(6, 2), (8, 8), (128, 8), (5, 3)])
def test_chooses_what_the_router_means(
    device: torch.device, dtype: torch.dtype, num_experts: int, num_chosen: int
) -> None:
    logits = _random(7, num_experts, device=device, dtype=dtype)
    chosen, weights = choose_experts(logits, num_chosen)
    want_chosen, want_weights = _choose(logits, num_chosen)
    assert torch.equal(chosen.long(), want_chosen)
    tolerance = 1e-6 if dtype == torch.float32 else 8e-3  # one step of bf16
    torch.testing.assert_close(weights, want_weights, atol=tolerance, rtol=tolerance)


def test_ties_apart_that_is_the_models_route(device: torch.device) -> None:
    x, router = _random(9, 32, device=device), _random(12, 32, device=device)
    chosen, weights = route(x, router, 4)
    ascending = chosen.argsort(dim=-1)
    have_chosen, have_weights = _choose(F.linear(x, router), 4)
    assert torch.equal(have_chosen, chosen.gather(1, ascending))
    torch.testing.assert_close(have_weights, weights.gather(1, ascending))


def test_of_equal_shares_the_lower_expert_wins(device: torch.device) -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0], [0.0] * 5], device=device)
    chosen, weights = choose_experts(logits, 3)
    assert chosen.tolist() == [[0, 1, 3], [0, 1, 2]]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, device=device))


def test_a_row_with_nan_spoils_itself_only(device: torch.device) -> None:
    logits = _random(6, 16, device=device)
    want = choose_experts(logits, 4)
    logits[2, 5] = float("nan")
    chosen, weights = choose_experts(logits, 4)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(chosen[others], want[0][others])
    assert torch.equal(weights[others], want[1][others])
    assert chosen[2].tolist() == sorted(set(chosen[2].tolist())), "valid and distinct"
    assert 0 <= int(chosen[2].min()) <= int(chosen[2].max()) < 16
    assert weights[2].isnan().all()


def test_refuses_more_choices_than_experts(device: torch.device) -> None:
    with pytest.raises(ValueError, match="num_chosen: 9 of 8"):
        choose_experts(torch.zeros(1, 8, device=device), 9)


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("n", "num_chosen", "num_experts"), [(1, 2, 4), (37, 3, 5), (600, 8, 6)])
def test_sorts_pairs_by_expert(
    device: torch.device, n: int, num_chosen: int, num_experts: int, id_dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(n)
    chosen = torch.randint(0, num_experts, (n, num_chosen), generator=generator, dtype=id_dtype).to(device)
    order, starts = sort_by_expert(chosen, num_experts)
    flat = chosen.flatten().long()
    assert torch.equal(order.long(), flat.argsort(stable=True))
    assert starts.tolist() == [0, *torch.bincount(flat, minlength=num_experts).cumsum(0).tolist()]


def test_sorts_where_some_experts_are_never_chosen(device: torch.device) -> None:
    order, starts = sort_by_expert(torch.tensor([[2, 5], [0, 2]], device=device), 7)
    assert order.tolist() == [2, 0, 3, 1]
    assert starts.tolist() == [0, 1, 1, 3, 3, 3, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("n", [1, MAX_PAIR_ROWS, MAX_PAIR_ROWS + 1, 40])
def test_block_is_the_eager_block(device: torch.device, dtype: torch.dtype, n: int) -> None:
    x, router, gate_up, down = _block(n, device, dtype)
    want = eager_experts(x, *_choose(F.linear(x, router), 3), gate_up, down)
    torch.testing.assert_close(_sparse_block(x, router, gate_up, down, 3), want, **_tolerance(dtype))


@pytest.mark.parametrize("n", [2, 9])
def test_takes_the_place_of_eager_experts(device: torch.device, n: int) -> None:
    x, router, gate_up, down = _block(n, device, torch.float32)
    chosen, weights = route(x, router, 2)
    have = _summed(fused_experts(x, chosen, weights, gate_up, down))
    torch.testing.assert_close(have, eager_experts(x, chosen, weights, gate_up, down), **_tolerance(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("tiling", [Tiling(16, 32, 32), Tiling(16, 64, 16, swap=True), Tiling(64, 16, 64)])
def test_tilings_agree(device: torch.device, dtype: torch.dtype, tiling: Tiling) -> None:
    """All rows at two experts, one of them in several blocks."""
    n = 50
    x, _, gate_up, down = _block(n, device, dtype)
    chosen = torch.tensor([[1, 4]] * n, device=device)
    weights = torch.rand(n, 2, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    order, starts = sort_by_expert(chosen, NUM_EXPERTS)
    activated = sorted_gate_up(x, order, starts, gate_up, 2, tiling)
    parts = sorted_down(activated, order, starts, weights, down, tiling)
    want = eager_experts(x, chosen, weights, gate_up, down)
    torch.testing.assert_close(_summed(parts), want, **_tolerance(dtype))


@pytest.mark.parametrize("tiling", [RowTiling(4, 32), RowTiling(16, 128)])
def test_pairs_agree_whatever_their_tiling(device: torch.device, tiling: RowTiling) -> None:
    x, router, gate_up, down = _block(3, device, HALF)
    chosen, weights = _choose(F.linear(x, router), 3)
    activated = pair_gate_up(x, chosen, gate_up, tiling)
    have = pair_down(activated, chosen, weights, down, tiling)
    want = eager_experts(x, chosen, weights, gate_up, down)
    torch.testing.assert_close(have, want, **_tolerance(HALF))


def test_no_rows_are_no_rows(device: torch.device) -> None:
    x, router, gate_up, down = _block(0, device, torch.float32)
    assert _sparse_block(x, router, gate_up, down, 2).shape == (0, HIDDEN)


def test_deterministic_rows_ignore_the_other_rows(device: torch.device) -> None:
    x, router, gate_up, down = _block(40, device, torch.float32)
    together = _sparse_block(x, router, gate_up, down, 2, deterministic=True)
    for few in (slice(0, 1), slice(7, 9)):
        assert torch.equal(_sparse_block(x[few], router, gate_up, down, 2, deterministic=True), together[few])


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 5, 64, 200, 600])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_published_shape_on_a_gpu(n: int, deterministic: bool) -> None:
    """One block of the 30B-A3B shape against fp32, captured in a graph."""
    torch.manual_seed(n)
    device = torch.device("cuda")
    x = torch.randn(n, 2048, device=device, dtype=torch.bfloat16)
    router = torch.randn(128, 2048, device=device, dtype=torch.bfloat16) * 0.05
    gate_up = torch.randn(128, 1536, 2048, device=device, dtype=torch.bfloat16) * 0.02
    down = torch.randn(128, 2048, 768, device=device, dtype=torch.bfloat16) * 0.02
    have = _sparse_block(x, router, gate_up, down, 8, deterministic=deterministic)
    chosen, weights = _routed(x, router, 8, deterministic=deterministic)
    want = eager_experts(x.float(), chosen.long(), weights.float(), gate_up.float(), down.float())
    assert (have.float() - want).norm() / want.norm() < 1e-2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _sparse_block(x, router, gate_up, down, 8, deterministic=deterministic)
    graph.replay()
    assert torch.equal(captured, have)


@pytest.mark.gpu
def test_deterministic_rows_of_a_published_shape_ignore_the_other_rows() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    x = torch.randn(600, 2048, device=device, dtype=torch.bfloat16)
    router = torch.randn(128, 2048, device=device, dtype=torch.bfloat16) * 0.05
    gate_up = torch.randn(128, 1536, 2048, device=device, dtype=torch.bfloat16) * 0.02
    down = torch.randn(128, 2048, 768, device=device, dtype=torch.bfloat16) * 0.02
    together = _sparse_block(x, router, gate_up, down, 8, deterministic=True)
    for few in (slice(0, 1), slice(3, 9), slice(100, 300)):
        assert torch.equal(_sparse_block(x[few], router, gate_up, down, 8, deterministic=True), together[few])
