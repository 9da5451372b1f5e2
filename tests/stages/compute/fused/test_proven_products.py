"""Products that are taken where they were seen to have the bits of another: on a CPU, with libraries made up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.compute.fused.proven_products import ProvenProducts

WEIGHT = torch.randn(8, 32)
SIZES = [1, 2, 4, 8, 16, 64]


def exact(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([F.linear(row, weight) for row in torch.split(x, 1)]) if len(x) else F.linear(x, weight)


def splitting(x: Tensor, weight: Tensor) -> Tensor:
    """A library that splits sums of fewer than four rows, and of 16."""
    assert len(x) in SIZES
    halves = exact(x[:, ::2].contiguous(), weight[:, ::2].contiguous()) + exact(
        x[:, 1::2].contiguous(), weight[:, 1::2].contiguous()
    )
    return halves if len(x) < 4 or len(x) == 16 else exact(x, weight)


def proven(*, is_alone: bool = False) -> ProvenProducts[Tensor]:
    found = ProvenProducts[Tensor](splitting, is_alone=is_alone)
    found.prove([WEIGHT], SIZES, exact)
    return found


@pytest.mark.parametrize(
    ("num_rows", "size"), [(1, None), (2, None), (3, 4), (4, 4), (6, 8), (8, 8), (9, None), (43, 64), (65, None)]
)
def test_rows_are_padded_to_a_proven_size_or_not_multiplied(num_rows: int, size: int | None) -> None:
    assert proven().size_for(num_rows, WEIGHT) == size


@pytest.mark.parametrize("num_rows", [1, 3, 9, 16, 64, 65, 129, 200])
def test_alone_every_number_of_rows_has_the_same_bits(num_rows: int) -> None:
    x = torch.randn(num_rows, 32)
    found = proven(is_alone=True).linear(x, WEIGHT)
    assert found is not None
    assert torch.equal(found, exact(x, WEIGHT))


def test_what_is_given_has_the_bits_of_the_other() -> None:
    products = proven()
    for num_rows in range(1, 140):
        x = torch.randn(num_rows, 32)
        found = products.linear(x, WEIGHT)
        assert found is None or torch.equal(found, exact(x, WEIGHT))


def test_a_weight_that_was_not_tried_is_not_multiplied() -> None:
    assert proven().linear(torch.randn(4, 16), torch.randn(8, 16)) is None


def test_alone_a_product_whose_small_sizes_all_differ_is_not_used() -> None:
    found = ProvenProducts[Tensor](splitting, is_alone=True)
    found.prove([WEIGHT], [1, 2, 16], exact)
    assert found.size_for(1, WEIGHT) is None
