"""Heads in FP8: near what they stand for, whatever its size, and exact where four bits are enough."""

from __future__ import annotations

import pytest
import torch

from stages.cached_heads import HeadCodes, put_heads

EVERYTHING = slice(None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e4, 1e30])
def test_values_keep_their_size_and_three_bits(size: float, dtype: torch.dtype) -> None:
    heads = (torch.randn(64, 2, 128, generator=torch.Generator().manual_seed(1)) * size).to(dtype)
    found = HeadCodes.of(heads)[EVERYTHING]
    assert found.dtype == dtype
    largest = heads.float().abs().amax(-1, keepdim=True)
    off = (found.float() - heads.float()).abs()
    assert (off <= heads.float().abs() / 16 + largest / 2**17).all()


@pytest.mark.parametrize("largest", [224.5, 256.0, 447.0, 448.0, 449.0, 895.0, 0.015625])
def test_the_largest_value_has_one_of_the_largest_codes(largest: float) -> None:
    codes = HeadCodes.of(torch.tensor([[[largest, 0.0, -largest, largest / 3]]])).codes.float()
    assert 224 <= codes.max() <= 448
    assert codes.min() == -codes.max()


def test_what_has_four_bits_is_exact() -> None:
    exact = torch.tensor([[[1.0, 1.125, -1.75, 0.0, 30.0, -0.5, 13.0, 2.0**-6]]])
    assert torch.equal(HeadCodes.of(exact)[EVERYTHING], exact)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_head_with_what_is_not_finite_is_nan_and_no_other(bad: float) -> None:
    for heads in ([[[0.0, 0.0], [bad, 1.0]]], [[[0.0, 0.0], [1.0, bad]]], [[[0.0, 0.0], [bad, bad]]]):
        found = HeadCodes.of(torch.tensor(heads))[EVERYTHING]
        assert not found[0, 0].any()
        assert found[0, 1].isnan().all()


def test_the_smallest_scale_is_exact() -> None:
    heads = torch.tensor([[[2.0**-120, -(2.0**-121), 0.0, 2.0**-126]]])
    assert torch.equal(HeadCodes.of(heads)[EVERYTHING], heads)


def test_heads_are_put_where_they_belong() -> None:
    heads = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(2))
    cached = HeadCodes.of(torch.zeros(6, 2, 8))
    put_heads(cached, torch.tensor([4, 0, 5]), heads)
    want = HeadCodes.of(heads)[EVERYTHING]
    assert torch.equal(cached[4:6], want[[0, 2]])
    assert torch.equal(cached[0:1], want[1:2])
    assert not cached[1:4].any()
