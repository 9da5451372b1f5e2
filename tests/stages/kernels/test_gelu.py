"""GELU with the bias before it, as values and as codes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from stages.kernels.activation import bias_gelu
from stages.kernels.codes.row_codes import RowCodes, quantise_rows

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter: exp of large values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [40, 128, 4352])
def test_values_are_those_of_torch(device: torch.device, dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(5, width, generator=generator) * 8).to(device, dtype)
    bias = torch.randn(width, generator=generator).to(device, dtype)
    want = F.gelu(x.float() + bias.float(), approximate="tanh")
    found = bias_gelu(x, bias, torch.empty_like(x)).float()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("num_rows", "width"), [(0, 256), (5, 256), (7, 4352)])
def test_codes_are_those_of_the_values(device: torch.device, num_rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(num_rows, width, generator=generator).to(device, torch.bfloat16)
    bias = torch.randn(width, generator=generator).to(device, torch.bfloat16)
    found = bias_gelu(x, bias, RowCodes.empty(x, width))
    want = quantise_rows(bias_gelu(x, bias, torch.empty_like(x)))
    assert torch.equal(found.codes.view(torch.uint8), want.codes.view(torch.uint8))
    assert torch.equal(found.scales, want.scales)
