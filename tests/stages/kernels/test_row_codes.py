"""Kernels that write codes against the same kernels that write values, and these quantised: every bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.kernels.activation import silu_mul
from stages.kernels.codes.row_codes import RowCodes, quantise_rows
from stages.kernels.norms import add_rms_norm, rms_norm
from stages.weights.fp8_matrix import SMALLEST_SCALE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter, about infinity

DTYPES = [torch.bfloat16, torch.float16]
NUM_ROWS = [(0, 0), (0, 10), (1, 0), (4, 0), (7, 0), (7, 10)]


def drawn(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Values of which 128 columns have a size of their own; rows of zeros, NaN, infinity, and below normal codes."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    sizes = torch.exp2(torch.arange(shape[-1]) // 128 % 5 - 2.0)
    x = torch.randn(shape, generator=generator) * sizes
    if len(shape) > 1 and shape[0] > 5:
        x[1], x[2, ..., 50], x[3, ..., 7], x[4] = 0.0, float("nan"), float("inf"), x[4] * 1e-4
    return x.to(device, dtype)


def same(found: RowCodes, want: RowCodes) -> None:
    """Compare what is of rows; all behind them are zeros."""
    rows, padded = len(want.codes), len(found.codes)
    assert (len(found), found.dtype) == (len(want), want.dtype)
    if len(want):
        assert torch.equal(found.codes[:rows].view(torch.uint8), want.codes.view(torch.uint8))
        assert torch.equal(found.scales[:, :rows].view(torch.int32), want.scales.view(torch.int32))
        assert not found.codes[len(want) :].view(torch.uint8).any()
        assert (found.scales[:, len(want) :] == SMALLEST_SCALE).all()
    assert padded % 4 == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [72, 128, 300, 2560, 4096, 5120])
@pytest.mark.parametrize(("n", "num_padded"), NUM_ROWS)
def test_codes_of_normed_rows(device, dtype, width, n, num_padded) -> None:
    x, weight = (drawn(*shape, device=device, dtype=dtype) for shape in ((n, width), (width,)))
    want = quantise_rows(rms_norm(x, weight, 1e-6, torch.empty_like(x)))
    found = rms_norm(x, weight, 1e-6, RowCodes.empty(x, width, num_padded))
    assert len(found.codes) >= num_padded
    same(found, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [(), (3,)])
@pytest.mark.parametrize(("n", "width"), [(7, 300), (6, 2560), (9, 4096), (5, 5120)])
def test_codes_of_normed_sums(device, dtype, parts, n, width) -> None:
    x, weight = (drawn(*shape, device=device, dtype=dtype) for shape in ((n, width), (width,)))
    delta = drawn(n, *parts, width, device=device, dtype=dtype, seed=5)
    total, normed = add_rms_norm(x, delta, weight, 1e-6, torch.empty_like(x))
    coded_total, found = add_rms_norm(x, delta, weight, 1e-6, RowCodes.empty(x, width, 12))
    assert torch.equal(coded_total.view(torch.int16), total.view(torch.int16))
    same(found, quantise_rows(normed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [72, 128, 1100])
@pytest.mark.parametrize(("n", "num_padded"), NUM_ROWS)
def test_codes_of_activated_rows(device, dtype, width, n, num_padded) -> None:
    gate_up = drawn(n, 2 * width, device=device, dtype=dtype)
    want = quantise_rows(silu_mul(gate_up, gate_up.new_empty(n, width)))
    same(silu_mul(gate_up, RowCodes.empty(gate_up, width, num_padded)), want)
