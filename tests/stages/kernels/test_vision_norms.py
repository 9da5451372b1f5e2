"""Residual addition and layer norm in one pass, against two."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from stages.kernels.vision_norms import add_layer_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [48, 160, 1152])
def test_sum_and_norm(device: torch.device, dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x, delta = (torch.randn(5, width, generator=generator).to(device, dtype) * 3 + 1 for _ in range(2))
    weight, bias = (torch.randn(width, generator=generator).to(device, dtype) for _ in range(2))
    expected = x + delta, F.layer_norm(x + delta, weight.shape, weight, bias, 1e-6)
    total, normed = add_layer_norm(x, delta, weight, bias, 1e-6)
    if device.type == "cuda" or dtype == torch.float32:
        assert torch.equal(total, expected[0])
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2  # the interpreter rounds to bf16 by cutting off
    for found, wanted in ((total, expected[0]), (normed, expected[1])):
        torch.testing.assert_close(found.float(), wanted.float(), atol=tolerance, rtol=tolerance)


def test_no_rows(device: torch.device) -> None:
    empty, weight = torch.empty(0, 48, device=device), torch.ones(48, device=device)
    assert add_layer_norm(empty, empty, weight, weight, 1e-6)[1].shape == (0, 48)
