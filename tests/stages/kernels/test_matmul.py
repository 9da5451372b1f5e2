"""The product for `--deterministic`: right, and blind to the other rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.matmul import invariant_linear

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter's products of bf16 are wrong


def _operands(n: int, inputs: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + inputs + width)
    x, weight = torch.randn(n, inputs, generator=generator), torch.randn(width, inputs, generator=generator)
    return x.to(device, dtype), (weight / inputs**0.5).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("n", "inputs", "width"), [(1, 64, 128), (5, 80, 40), (70, 96, 40), (0, 64, 64)])
def test_is_the_linear_product(device: torch.device, dtype: torch.dtype, n: int, inputs: int, width: int) -> None:
    x, weight = _operands(n, inputs, width, device, dtype)
    want = F.linear(x.double(), weight.double()).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(invariant_linear(x, weight), want, atol=tolerance, rtol=tolerance)


def test_a_row_ignores_the_other_rows(device: torch.device) -> None:
    """In fp32; halves change their tiles with the number of rows, which only the GPU's own sums make up for."""
    x, weight = _operands(70, 96, 40, device, torch.float32)
    together = invariant_linear(x, weight)
    for few in (slice(0, 1), slice(60, 63), slice(5, 30)):
        assert torch.equal(invariant_linear(x[few], weight), together[few])


@pytest.mark.gpu
@pytest.mark.parametrize(("inputs", "width"), [(4096, 6144), (12288, 4096)])
def test_a_row_of_a_published_shape_ignores_the_other_rows(inputs: int, width: int) -> None:
    x, weight = _operands(700, inputs, width, torch.device("cuda"), torch.bfloat16)
    together = invariant_linear(x, weight)
    want = F.linear(x.float(), weight.float())
    assert (together.float() - want).norm() / want.norm() < 5e-3
    for few in (slice(0, 1), slice(70, 73), slice(5, 55), slice(9, 200), slice(5, 500)):
        assert torch.equal(invariant_linear(x[few].contiguous(), weight), together[few])
