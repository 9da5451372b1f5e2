"""DeepStack is seen to matter: switched off or shifted, parity breaks. Its loss alone leaves fluent text.

Taps that do not ascend are taken block by block, each through the merger at its place in the list.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.qwen3_vl.vision import TowerOutput
from tests.kit.models.transformers_oracle import (
    FP32,
    encode,
    prompt_logits,
    reference_logits,
    relative_error,
    scene,
    stages_of,
)

DENSE_AND_MOE = (FP32[0], FP32[3])


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("variant", DENSE_AND_MOE, ids=str)
def test_parity_breaks_without_one_level(variant, level):
    shown = scene(variant, "one image")
    rows = encode(variant, shown)
    without = rows.rows.clone()
    without[1 + level] = 0
    found = prompt_logits(stages_of(variant), shown, TowerOutput(without))
    assert relative_error(found, reference_logits(variant, shown)) > 1e-2


@pytest.mark.parametrize("variant", DENSE_AND_MOE, ids=str)
def test_parity_breaks_when_levels_are_shifted(variant):
    shown = scene(variant, "one image")
    rows = encode(variant, shown)
    shifted = TowerOutput(rows.rows[[0, 2, 3, 1]])
    found = prompt_logits(stages_of(variant), shown, shifted)
    assert relative_error(found, reference_logits(variant, shown)) > 1e-2


@pytest.mark.parametrize("variant", DENSE_AND_MOE, ids=str)
def test_parity_breaks_without_the_merged_rows(variant):
    shown = scene(variant, "one image")
    rows = encode(variant, shown)
    without = rows.rows.clone()
    without[0] = 0
    found = prompt_logits(stages_of(variant), shown, TowerOutput(without))
    assert relative_error(found, reference_logits(variant, shown)) > 1e-2


@pytest.mark.parametrize("taps", ["[3, 0, 1]", "[1, 0, 3]", "[3, 1]"])
@pytest.mark.parametrize("variant", DENSE_AND_MOE, ids=str)
def test_taps_in_any_order_mean_what_they_mean_to_transformers(variant, taps):
    changed = replace(variant, changes=f'{{"vision_config": {{"deepstack_visual_indexes": {taps}}}}}')
    shown = scene(changed, "image and odd video")
    found = prompt_logits(stages_of(changed), shown, encode(changed, shown))
    assert relative_error(found, reference_logits(changed, shown)) <= 1e-5
