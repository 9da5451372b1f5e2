"""The tower's graphs on a GPU: the bits of the same kernels over as many rows, whatever lies beyond the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from export.synthetic.shapes import shape_config
from stages.compute.fused.captured_tower import CapturedTower, capture_tower
from stages.prompt.preprocess import Patches
from stages.qwen3_vl.attention import attention_named
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.tensors import vision_shapes
from stages.qwen3_vl.vision import TowerOutput, VisionTower
from stages.qwen3_vl.vision_places import BatchPlaces, frame_lengths, frame_tiles
from stages.random_weights import draw_weights
from stages.vision.tower_lane import TowerLane

MAX_PATCHES = 1024
SQUARE, WIDE, TALL, VIDEO = PatchGrid(1, 16, 16), PatchGrid(1, 6, 20), PatchGrid(1, 38, 4), PatchGrid(3, 8, 10)
MIXES = [
    [SQUARE],
    [PatchGrid(1, 2, 2)],
    [PatchGrid(1, 8, 16)],
    [WIDE, SQUARE, TALL],
    [VIDEO, TALL, VIDEO],
    [PatchGrid(1, 32, 32)],
    [WIDE] * 8,
]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@cache
def tower() -> VisionTower:
    """A tower of the published shape with few blocks."""
    whole = shape_config("8B")
    vision = dataclasses.replace(whole.vision, depth=3, deepstack_indexes=(0, 1))
    config: ModelConfig = dataclasses.replace(whole, vision=vision)
    weights = draw_weights(vision_shapes(config), torch.device("cuda"), torch.bfloat16)
    return VisionTower(config, weights, attention_named("sdpa"))


@cache
def captured() -> CapturedTower:
    found = capture_tower(tower(), MAX_PATCHES)
    assert isinstance(found, CapturedTower)
    return found


def patches_of(grids: Sequence[PatchGrid], seed: int = 0, width: int = 1536) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = sum(grid.num_patches for grid in grids), width
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).pin_memory()


def launched_with_company(patches: Tensor, grids: Sequence[PatchGrid], size: int) -> Tensor:
    """The kernels of a graph of `size` patches one by one, with noise beyond the pictures."""
    own, num_patches = tower().places.of(grids), len(patches)

    def filled(part: Tensor) -> Tensor:
        return torch.cat((part, torch.randn(size - num_patches, part.shape[1], device="cuda").to(part.dtype)))

    tiles = torch.from_numpy(frame_tiles(frame_lengths(grids), 3 * size // 128)).cuda()
    places = BatchPlaces(filled(own.embeddings), filled(own.cos), filled(own.sin), (), tiles)
    noise = torch.randint(0, 256, (size - num_patches, patches.shape[1]), dtype=torch.uint8)
    rows = tower().empty_rows(size)
    tower().forward(torch.cat((patches, noise)).cuda(), places, rows)
    return rows[:, : num_patches // 4]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("grids", MIXES, ids=str)
def test_a_graph_gives_the_bits_of_its_kernels_whatever_lies_beyond(grids: list[PatchGrid]) -> None:
    patches = patches_of(grids)
    captured().encode(patches_of([PatchGrid(1, 32, 32)], seed=9), [PatchGrid(1, 32, 32)])  # leaves rows behind
    found = captured().encode(patches, grids).rows.clone()
    size = captured().size_for(grids)
    assert size is not None
    with torch.inference_mode():
        assert torch.equal(found, launched_with_company(patches, grids, size))


@pytest.mark.parametrize("grids", MIXES, ids=str)
def test_graphs_agree_with_the_plain_tower_within_rounding(grids: list[PatchGrid]) -> None:
    patches = patches_of(grids)
    found, expected = captured().encode(patches, grids).rows, tower().encode(patches, grids).rows
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 0.02
    if len(patches) == captured().size_for(grids):
        assert torch.equal(found, expected)


def test_a_still_picture_is_shown_for_a_whole_temporal_patch() -> None:
    still = patches_of([WIDE, SQUARE], width=768)
    frames = still.view(-1, 3, 1, 256).expand(-1, -1, 2, -1).reshape(-1, 1536).pin_memory()
    found = captured().encode(still, [WIDE, SQUARE]).rows.clone()
    assert torch.equal(found, captured().encode(frames, [WIDE, SQUARE]).rows)


def test_neighbours_in_a_graph_leave_a_picture_alone() -> None:
    first = patches_of([WIDE])
    with_square = torch.cat((first, patches_of([SQUARE], 1)))
    with_others = torch.cat((first, patches_of([TALL, VIDEO], 2)))[: len(with_square)]
    found = captured().encode(with_square, [WIDE, SQUARE]).rows[:, :30].clone()
    others = [WIDE, PatchGrid(1, 2, 44), PatchGrid(2, 6, 14)]
    assert torch.equal(found, captured().encode(with_others, others).rows[:, :30])


@pytest.mark.parametrize("grids", [[PatchGrid(1, 34, 32)], [PatchGrid(1, 2, 4)] * 60], ids=["large", "many"])
def test_what_fits_into_no_graph_is_launched(grids: list[PatchGrid]) -> None:
    patches = patches_of(grids)
    assert captured().size_for(grids) is None
    assert torch.equal(captured().encode(patches, grids).rows, tower().encode(patches, grids).rows)


def test_no_memory_is_taken_for_pictures_of_known_sizes() -> None:
    for grids in MIXES:
        captured().encode(patches_of(grids), grids)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for grids in MIXES:
        captured().encode(patches_of(grids, 1), grids)
    assert torch.cuda.max_memory_allocated() == before


@pytest.mark.parametrize("keeps_on_device", [True, False])
def test_batches_that_follow_each_other_keep_what_is_theirs(*, keeps_on_device: bool) -> None:
    lane = TowerLane(captured(), keeps_on_device=keeps_on_device)
    batches = [[Patches(patches_of([grid], seed), grid) for grid in grids] for seed, grids in enumerate(MIXES)]
    launched = [lane.launch(batch) for batch in batches]
    found = [lane.finish(each) for each in launched]
    for batch, outputs in zip(batches, found, strict=True):
        whole = captured().encode(torch.cat([each.rows for each in batch]), [each.grid for each in batch])
        assert torch.equal(TowerOutput.joined(outputs).rows.cpu(), whole.rows.cpu())


def test_an_invariant_tower_gives_a_picture_the_same_bits_in_any_company() -> None:
    found = capture_tower(tower(), 4096, is_invariant=True)
    assert isinstance(found, CapturedTower)
    assert len(found._graphs.sizes) > 1
    alone = {}
    for seed, grid in enumerate((SQUARE, WIDE, TALL, VIDEO, PatchGrid(1, 32, 32))):
        alone[grid] = patches_of([grid], seed), found.encode(patches_of([grid], seed), [grid]).rows.clone()
    for grids in ([WIDE, SQUARE], [VIDEO, TALL, SQUARE, WIDE], [PatchGrid(1, 32, 32), VIDEO, SQUARE]):
        width = max(patches.shape[1] for patches, _ in (alone[grid] for grid in grids))
        assert {alone[grid][0].shape[1] for grid in grids} == {width}
        rows = found.encode(torch.cat([alone[grid][0] for grid in grids]), grids).rows
        expected = torch.cat([alone[grid][1] for grid in grids], dim=1)
        assert torch.equal(rows, expected)


def test_an_invariant_tower_encodes_one_by_one_what_no_graph_takes() -> None:
    found = capture_tower(tower(), MAX_PATCHES, is_invariant=True)
    grids = [SQUARE, WIDE, PatchGrid(1, 32, 32), TALL]  # 1,552 patches
    singles = [found.encode(patches_of([grid], seed), [grid]).rows.clone() for seed, grid in enumerate(grids)]
    patches = torch.cat([patches_of([grid], seed) for seed, grid in enumerate(grids)])
    assert torch.equal(found.encode(patches, grids).rows, torch.cat(singles, dim=1))
