"""The vision tower against transformers: merged rows and every DeepStack level."""

from __future__ import annotations

import pytest
import torch
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from stages.qwen3_vl.patches import PatchGrid, pixel_values
from stages.qwen3_vl.vision_places import PatchPlaces
from tests.kit.models.transformers_oracle import (
    BF16,
    FP32,
    Variant,
    config_of,
    encode,
    reference_of,
    relative_error,
    scene,
)

VISUAL = ("one image", "three images", "image and odd video")


@torch.no_grad()
def reference_rows(variant: Variant, rows: torch.Tensor, grids: list[PatchGrid]):
    grid = torch.tensor([[g.frames, g.height, g.width] for g in grids])
    return reference_of(variant).model.visual(pixel_values(rows, config_of(variant).vision).to(variant.dtype), grid)


@pytest.mark.parametrize("name", VISUAL)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", FP32[:1], ids=str)
def test_rows_in_fp32_agree_within_rounding(variant, attention, name):
    shown = scene(variant, name)
    expected = reference_rows(variant, shown.rows, shown.grids)
    found = encode(variant, shown, attention)
    assert relative_error(found.embeds, expected.pooler_output) <= 1e-5
    for ours, theirs in zip(found.levels, expected.deepstack_features, strict=True):
        assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("name", VISUAL)
@pytest.mark.parametrize("variant", BF16[:1], ids=str)
def test_rows_in_bf16_are_bit_identical_with_eager_attention(variant, name):
    shown = scene(variant, name)
    expected = reference_rows(variant, shown.rows, shown.grids)
    found = encode(variant, shown)
    assert torch.equal(found.embeds, expected.pooler_output)
    for ours, theirs in zip(found.levels, expected.deepstack_features, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(2, 2), (4, 34), (16, 16), (20, 6)])
def test_position_embeddings_are_interpolated_as_transformers_does(size):
    variant = FP32[0]
    grids = [PatchGrid(1, *size), PatchGrid(2, 4, 6)]
    visual = reference_of(variant).model.visual
    thw = torch.tensor([[g.frames, g.height, g.width] for g in grids])
    indexes, weights = get_vision_interpolation_indices_and_weights(
        thw, visual.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    table = visual.pos_embed.weight
    places = PatchPlaces(config_of(variant).vision, table.detach())
    ours = places.of(grids).embeddings
    assert torch.equal(places.of(grids).embeddings, ours), "those that were kept"
    assert torch.equal(ours, (table[indexes] * weights[:, :, None]).sum(1))
