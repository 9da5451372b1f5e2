"""The draw of kernels against that of plain operations: the same tokens."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from stages.compute.sampling.candidates import NUM_SPARE, DrawSettings, draw, rank_best, unit_of
from stages.compute.sampling.plan import MAX_KERNEL_TOP_K
from stages.kernels.sampling.top_k_draw import MOST_RANKED, draw_top_k

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter, about NaN


def table_of(rows: list[int], vocab: int, seed: int, device: torch.device) -> Tensor:
    """Settings of rows, `[6, n]`, as plans make them."""
    chance = random.Random(seed)
    lines = []
    for row in rows:
        last = min(chance.choice((1, 3, 20, 50, MOST_RANKED - NUM_SPARE)), vocab) - 1
        top_p, min_p = chance.choice((1.0, 0.8, 0.3, 5e-324)), chance.choice((0.0, 0.0, 0.05, 1.0))
        number = chance.choice((0.0, chance.random(), chance.random(), 1 - 2**-53))
        lines.append((row, chance.choice((0.1, 0.7, 1.0, 2.0)), last, top_p, min_p, number))
    return torch.tensor(lines, dtype=torch.float64).reshape(-1, 6).t().contiguous().to(device)


def both(logits: Tensor, table: Tensor) -> tuple[list[int], list[int]]:
    """Tokens by kernels, and by plain operations."""
    vocab = logits.shape[1]
    settings = DrawSettings.of_table(table)
    want = draw(rank_best(logits.index_select(0, settings.logit_rows), MOST_RANKED), settings, vocab)
    found = draw_top_k(logits, table, unit=unit_of(vocab), num_spare=NUM_SPARE)
    return found.tolist(), want.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [0.0, 0.5])
@pytest.mark.parametrize("vocab", [1, 65, 692, 10_007])
def test_kernels_draw_what_plain_operations_draw(device, vocab, step, dtype) -> None:
    logits = 3 * torch.randn(12, vocab, generator=torch.Generator().manual_seed(vocab))
    logits = ((logits / step).round() * step if step else logits).to(device, dtype)  # rounded ones tie
    for seed in range(100 if device.type == "cuda" else 1):  # the interpreter is slow
        found, want = both(logits, table_of([3, 11, 0], vocab, seed, device))
        assert found == want


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_draw_likewise_from_as_many_tokens_as_models_have(dtype) -> None:
    logits = 3 * torch.randn(256, 151_936, generator=torch.Generator().manual_seed(1))
    for seed in range(10):
        found, want = both(logits.to("cuda", dtype), table_of([*range(256)], 151_936, seed, torch.device("cuda")))
        assert found == want


def test_equal_logits_rank_by_id_in_any_group_and_with_any_sign_of_zero(device) -> None:
    logits = torch.full((1, 9000), -1.0, device=device)
    logits[0, [8999, 4000, 70, 5]] = torch.tensor([0.0, -0.0, -0.0, 0.0], device=device)
    table = torch.tensor([[0] * 4, [1.0] * 4, [2] * 4, [1.0] * 4, [0.5] * 4, [0.0, 0.3, 0.6, 0.9]], dtype=torch.float64)
    assert draw_top_k(logits, table.to(device), unit=unit_of(9000), num_spare=NUM_SPARE).tolist() == [5, 70, 4000, 8999]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_gives_some_token_and_disturbs_no_other(device, bad) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(3)).to(device)
    table = table_of([0, 1, 2], 5000, 7, device)
    want = both(logits, table)[1]
    logits[1, 100:] = bad
    found = draw_top_k(logits, table, unit=unit_of(5000), num_spare=NUM_SPARE).tolist()
    assert (found[0], found[2]) == (want[0], want[2])
    assert 0 <= found[1] < 5000


def test_kernels_rank_whatever_plans_leave_to_them() -> None:
    assert MAX_KERNEL_TOP_K + NUM_SPARE <= MOST_RANKED


def test_no_rows_are_no_tokens(device) -> None:
    table = torch.empty(6, 0, dtype=torch.float64, device=device)
    assert draw_top_k(torch.zeros(2, 100, device=device), table, unit=unit_of(100), num_spare=NUM_SPARE).tolist() == []
