"""Queries and keys turned within the packed projections, against turning them apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.kernels.vision_rotation import rotate_packed
from stages.qwen3_vl.rope import rotate


def rotate_packed_reference(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    whole = torch.cat((cos, cos), dim=-1)[:, None, None], torch.cat((sin, sin), dim=-1)[:, None, None]
    qkv[:, :2] = rotate(qkv[:, :2].float(), *whole).to(qkv.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(16, 72), (4, 16), (2, 64)])
def test_queries_and_keys_are_turned_and_values_stay(
    device: torch.device, dtype: torch.dtype, num_heads: int, head_dim: int
) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    qkv = torch.randn(7, 3, num_heads, head_dim, generator=generator).to(device, dtype)
    angles = (torch.rand(7, head_dim // 2, generator=generator) * 60).to(device)
    expected, values = qkv.clone(), qkv[:, 2].clone()
    rotate_packed_reference(expected, angles.cos(), angles.sin())
    rotate_packed(qkv, angles.cos(), angles.sin())
    assert torch.equal(qkv[:, 2], values)
    if device.type == "cuda" or dtype == torch.float32:
        assert torch.equal(qkv, expected)
    else:  # the interpreter rounds to bf16 by cutting off
        torch.testing.assert_close(qkv, expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize(("num_heads", "head_dim"), [(16, 72), (4, 16), (3, 8)])
def test_a_bias_is_added_to_queries_keys_and_values_first(device: torch.device, num_heads: int, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    qkv = torch.randn(7, 3, num_heads, head_dim, generator=generator).to(device)
    bias = torch.randn(3 * num_heads * head_dim, generator=generator).to(device)
    angles = (torch.rand(7, head_dim // 2, generator=generator) * 60).to(device)
    expected = qkv + bias.view(3, num_heads, head_dim)
    rotate_packed(expected, angles.cos(), angles.sin())
    rotate_packed(qkv, angles.cos(), angles.sin(), bias)
    assert torch.equal(qkv, expected)


def test_nothing_to_turn(device: torch.device) -> None:
    empty = torch.empty(0, 8, device=device)
    rotate_packed(torch.empty(0, 3, 2, 16, device=device), empty, empty)
