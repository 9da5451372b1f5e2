"""When a difference is rounding."""

from __future__ import annotations

import msgspec
import torch

from export.parity.comparison import count_equal
from export.parity.part import BF16_TOLERANCE, FP32_TOLERANCE, Difference, Part, worst_by_kind
from export.parity.receipt import Greedy


def test_the_largest_difference_of_all_pairs_counts():
    ours, theirs = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    found = Difference.of([(theirs, theirs), (ours, theirs)])
    assert found == Difference(absolute=0.5, relative=0.2, num_different=1)


def test_values_that_are_not_finite_are_beyond_every_tolerance_and_survive_json():
    for value in (float("nan"), float("inf")):
        tensor = torch.tensor([value])
        part = Part("layers.0", Difference.of([(tensor, tensor)]), BF16_TOLERANCE)
        assert not part.is_within
        assert msgspec.json.decode(msgspec.json.encode(part), type=Part) == part


def test_in_bfloat16_float32_decides():
    rounded = Difference(0.1, BF16_TOLERANCE, 7)
    assert Part("a", rounded, BF16_TOLERANCE, Difference(1e-6, FP32_TOLERANCE, 7)).is_within
    assert not Part("a", rounded, BF16_TOLERANCE, Difference(1e-4, 1e-4, 7)).is_within
    assert not Part("a", Difference(0.1, 2 * BF16_TOLERANCE, 7), BF16_TOLERANCE).is_within


def test_the_worst_of_a_kind_is_one_beyond_its_tolerance():
    parts = [
        Part("layers.9", Difference(0.1, 0.01, 1), BF16_TOLERANCE),
        Part("layers.10", Difference(0.1, 0.001, 1), BF16_TOLERANCE, findings=("a tensor differs",)),
        Part("lm_head"),
    ]
    assert {kind: part.name for kind, part in worst_by_kind(parts).items()} == {
        "layers": "layers.10",
        "lm_head": "lm_head",
    }


def test_another_token_is_a_tie_within_the_tolerance_of_the_models_dtype():
    near, far = torch.tensor([1.7109375, 1.6953125, 0.0]), torch.tensor([1.0, 0.5, 0.0])
    assert count_equal("a", [0, 1, 2], [far, near, near], BF16_TOLERANCE) == Greedy("a", 3, 1, is_tie=True)
    assert count_equal("a", [0, 1], [far, near], FP32_TOLERANCE) == Greedy("a", 2, 1, is_tie=False)
    assert count_equal("a", [1], [far], BF16_TOLERANCE) == Greedy("a", 1, 0, is_tie=False)
    assert count_equal("a", [0, 0], [far, near], BF16_TOLERANCE) == Greedy("a", 2, 2)
