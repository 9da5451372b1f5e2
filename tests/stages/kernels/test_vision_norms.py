"""Residual addition and layer norm in one pass, against two."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from stages.kernels.codes.row_codes import RowCodes, quantise_rows
from stages.kernels.vision_norms import add_layer_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [48, 160, 1152])
def test_sum_and_norm(device: torch.device, dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x, delta = (torch.randn(5, width, generator=generator).to(device, dtype) * 3 + 1 for _ in range(2))
    weight, bias = (torch.randn(width, generator=generator).to(device, dtype) for _ in range(2))
    expected = x + delta, F.layer_norm(x + delta, weight.shape, weight, bias, 1e-6)
    total, normed = add_layer_norm(x, delta, weight, bias, 1e-6, torch.empty_like(x))
    if device.type == "cuda" or dtype == torch.float32:
        assert torch.equal(total, expected[0])
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2  # the interpreter rounds to bf16 by cutting off
    for found, wanted in ((total, expected[0]), (normed, expected[1])):
        torch.testing.assert_close(found.float(), wanted.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("width", [72, 160, 1152])
def test_a_bias_is_added_to_what_is_added_and_codes_are_those_of_the_values(device: torch.device, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x, delta = (torch.randn(5, width, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    weight, bias, late = (torch.randn(width, generator=generator).to(device, torch.bfloat16) for _ in range(3))
    total, values = add_layer_norm(x, delta, weight, bias, 1e-6, torch.empty_like(x), late)
    coded_total, coded = add_layer_norm(x, delta, weight, bias, 1e-6, RowCodes.empty(x, width), late)
    assert torch.equal(total, coded_total)
    want = quantise_rows(values)
    assert torch.equal(coded.codes.view(torch.uint8), want.codes.view(torch.uint8))
    assert torch.equal(coded.scales, want.scales)
    torch.testing.assert_close(total, x + (delta + late), atol=3e-2, rtol=3e-2)
    if device.type == "cuda":
        assert torch.equal(total, x + (delta + late))


def test_no_rows(device: torch.device) -> None:
    empty, weight = torch.empty(0, 48, device=device), torch.ones(48, device=device)
    assert add_layer_norm(empty, empty, weight, weight, 1e-6, empty)[1].shape == (0, 48)
