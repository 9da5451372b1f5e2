"""The draw of kernels from all tokens against that of plain operations: the same tokens."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from stages.compute.sampling.candidates import NUM_SPARE, DrawSettings, draw, rank_all, unit_of
from stages.compute.sampling.plan import KERNEL_GROUPS
from stages.compute.sampling.whole_vocabulary import Cuts, draw_whole
from stages.kernels.sampling.whole_draw import MOST_ROWS, draw_from_all

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter, about NaN
ALL_CUTS = Cuts(top_k=True, top_p=True, min_p=True)


def table_of(rows: list[int], vocab: int, seed: int, device: torch.device) -> Tensor:
    """Settings of rows, `[6, n]`, as plans make them; each cut is left out of every other one or so."""
    chance = random.Random(seed)
    lines = []
    for row in rows:
        last = min(chance.choice((1, 300, vocab, vocab)), vocab) - 1
        top_p, min_p = chance.choice((1.0, 1.0, 0.9, 0.3, 5e-324)), chance.choice((0.0, 0.0, 0.05, 1.0))
        number = chance.choice((0.0, chance.random(), chance.random(), 1 - 2**-53))
        lines.append((row, chance.choice((0.1, 0.7, 1.0, 2.0)), last, top_p, min_p, number))
    return torch.tensor(lines, dtype=torch.float64).reshape(-1, 6).t().contiguous().to(device)


def logits_of(num_rows: int, vocab: int, step: float, device: torch.device) -> Tensor:
    logits = 3 * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(vocab))
    return ((logits / step).round() * step if step else logits).to(device, torch.bfloat16)  # rounded ones tie


def drawn(logits: Tensor, table: Tensor) -> list[int]:
    return draw_from_all(logits, table, unit=unit_of(logits.shape[1]), num_spare=NUM_SPARE).tolist()


@pytest.mark.parametrize("step", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("vocab", [1, 65, 10_007])
def test_kernels_draw_what_sorting_draws(device: torch.device, vocab: int, step: float) -> None:
    logits = logits_of(12, vocab, step, device)
    for seed in range(100 if device.type == "cuda" else 2):  # the interpreter is slow
        table = table_of([3, 11, 0], vocab, seed, device)
        settings = DrawSettings.of_table(table)
        want = draw(rank_all(logits.index_select(0, settings.logit_rows)), settings, vocab)
        assert drawn(logits, table) == want.tolist(), seed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_draw_likewise_from_as_many_tokens_as_models_have() -> None:
    device, vocab = torch.device("cuda"), 151_936
    logits = logits_of(MOST_ROWS, vocab, 0.0, device)
    for seed in range(5):
        table = table_of([*range(MOST_ROWS)], vocab, seed, device)
        want = draw_whole(logits, DrawSettings.of_table(table), ALL_CUTS)
        assert drawn(logits, table) == want.tolist()


def test_equal_logits_rank_by_id_with_any_sign_of_zero(device: torch.device) -> None:
    logits = torch.full((1, 9000), -60.0, device=device, dtype=torch.bfloat16)
    zeros = torch.tensor([0.0, -0.0, -0.0, 0.0], device=device, dtype=torch.bfloat16)
    logits[0, [8999, 4000, 70, 5]] = zeros
    table = torch.tensor([[0] * 4, [1.0] * 4, [8999] * 4, [1.0] * 4, [0.0] * 4, [0.0, 0.3, 0.6, 0.9]])
    assert drawn(logits, table.to(device, torch.float64)) == [5, 70, 4000, 8999]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_gives_some_token_and_disturbs_no_other(device: torch.device, bad: float) -> None:
    logits = logits_of(3, 5000, 0.0, device)
    table = table_of([0, 1, 2], 5000, 7, device)
    want = drawn(logits, table)
    logits[1, 100:] = bad
    found = drawn(logits, table)
    assert (found[0], found[2]) == (want[0], want[2])
    assert 0 <= found[1] < 5000


def test_plans_leave_no_more_rows_to_kernels_than_they_take() -> None:
    assert KERNEL_GROUPS.whole == MOST_ROWS


def test_no_rows_are_no_tokens(device: torch.device) -> None:
    table = torch.empty(6, 0, dtype=torch.float64, device=device)
    assert drawn(torch.zeros(2, 100, device=device, dtype=torch.bfloat16), table) == []
