"""Products of few rows, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from stages.kernels.skinny_linear import (
    few_rows_gated,
    few_rows_linear,
    row_linear,
    skinny_linear,
)
from stages.kernels.tiling import RowTiling, Tiling

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter's products of bf16 are wrong


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("n", "tiling"),
    [
        (1, RowTiling(4, 32)),
        (3, RowTiling(16, 128, num_stages=3)),
        (5, Tiling(16, 32, 32)),
        (18, Tiling(16, 64, 16, swap=True)),
    ],
)
@pytest.mark.parametrize(("inputs", "width"), [(64, 64), (40, 24)])
def test_is_the_linear_product(
    device: torch.device,
    dtype: torch.dtype,
    n: int,
    tiling: RowTiling | Tiling,
    gated: bool,
    inputs: int,
    width: int,
) -> None:
    generator = torch.Generator().manual_seed(n + width)
    x = torch.randn(n, inputs, generator=generator).to(device, dtype)
    weight = (torch.randn(width, inputs, generator=generator) / inputs**0.5).to(device, dtype)
    if isinstance(tiling, RowTiling):
        have = row_linear(x, weight, tiling, gated=gated)
    else:
        have = skinny_linear(x, weight, tiling, gated=gated)
    want = F.linear(x.double(), weight.double()).to(dtype)
    if gated:
        gate, up = want.chunk(2, dim=-1)
        want = F.silu(gate) * up
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(have, want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("n", [0, 1, 2, 20, 70])
def test_any_number_of_rows(device: torch.device, dtype: torch.dtype, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 48, generator=generator).to(device, dtype)
    weight = (torch.randn(80, 48, generator=generator) / 7).to(device, dtype)
    want = F.linear(x.double(), weight.double()).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(few_rows_linear(x, weight), want, atol=tolerance, rtol=tolerance)
    gate, up = want.chunk(2, dim=-1)
    torch.testing.assert_close(few_rows_gated(x, weight), F.silu(gate) * up, atol=tolerance, rtol=tolerance)
