"""Patch rows: order, sizes, and the processor files that set the bounds. Numbers are compared in tests/parity."""

from __future__ import annotations

import pytest
import torch

from broker_pipeline.errors import ImageShapeError, ModelConfigError, TensorMismatchError
from stages.prompt.preprocess import (
    PixelBudget,
    cut_patches,
    fit_size,
    join_patches,
    resize,
)
from stages.prompt.visual_frames import image_frames, video_frames
from stages.qwen3_vl.patches import PatchGrid, patch_coordinates, pixel_values
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.models.transformers_oracle import FP32, config_of, picture

VISION = config_of(FP32[0]).vision
WIDE = PixelBudget(1, 10**9)
HALVES = [0.5, 0.5, 0.5]
RULES = {
    "size": {"shortest_edge": 1, "longest_edge": 2},
    "patch_size": 16,
    "image_mean": HALVES,
    "image_std": HALVES,
}


def test_rows_come_in_merge_block_order_and_hold_their_own_pixels():
    height, width = 64, 96  # 4 x 6 patches
    index = torch.arange(4)[:, None] * 6 + torch.arange(6)  # each patch filled with its own number
    frame = index.repeat_interleave(16, 0).repeat_interleave(16, 1).to(torch.uint8).expand(3, height, width)
    patches = cut_patches(frame.expand(2, -1, -1, -1), VISION)
    rows, columns = patch_coordinates(patches.grid, 2)
    numbers = patches.rows
    assert patches.grid == PatchGrid(1, 4, 6)
    assert (numbers == (rows * 6 + columns)[:, None]).all()
    assert numbers[:8, 0].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]


def test_a_row_is_channel_frame_y_x():
    frames = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).remainder(251).to(torch.uint8)
    patches = cut_patches(frames, VISION)
    expected = frames[:, :, 16:32, 0:16].transpose(0, 1).reshape(-1)
    assert torch.equal(patches.rows[2], expected)


@pytest.mark.parametrize(
    ("height", "width", "tokens"),
    [(224, 224, 64), (480, 640, 300), (1080, 1920, 2040), (2160, 3840, 8160), (20000, 20000, 16384)],
)
def test_pictures_cost_the_tokens_of_the_real_models(height, width, tokens):
    fitted = fit_size(height, width, 32, PixelBudget(65536, 16777216))
    assert fitted[0] * fitted[1] // 1024 == tokens


def test_resizing_keeps_smooth_pictures_smooth_and_does_nothing_at_the_right_size():
    pixels = picture(100, 150, 0)[None]
    assert resize(pixels, (100, 150)) is pixels
    small = resize(pixels, (64, 96))
    assert small.dtype == torch.uint8
    assert abs(float(small.float().mean() - pixels.float().mean())) < 2


def test_extreme_pictures_and_uneven_videos_are_refused():
    with pytest.raises(ImageShapeError):
        image_frames(torch.zeros(3, 2, 402, dtype=torch.uint8), VISION, WIDE)
    with pytest.raises(ImageShapeError, match="frame 1 has 32 x 64 pixels, frame 0 has 64 x 64"):
        video_frames([picture(64, 64, 0), picture(64, 32, 0)], 2, VISION, WIDE)


def test_the_grid_is_known_before_patches_are_cut():
    video = video_frames([picture(64, 96, 0)] * 3, 3, VISION, WIDE)
    assert video.grid == video.to_patches().grid == PatchGrid(2, 4, 6)


def test_bounds_are_read_from_the_processor_files():
    directory = tiny_checkpoint()
    budget = PixelBudget.from_json(
        (directory / "preprocessor_config.json").read_bytes(), VISION, file="preprocessor_config.json"
    )
    assert budget == PixelBudget(4096, 65536)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"size": {}}, "size.shortest_edge"),
        ({"size": {"shortest_edge": 1}}, "size.longest_edge"),
        ({"size": {"shortest_edge": 10, "longest_edge": 9}}, "size.shortest_edge"),
        ({"min_pixels": 10, "max_pixels": 9}, "min_pixels"),
        ({"min_pixels": 10}, "min_pixels"),
        ({"size": None}, "size"),
        ({"size": None, "min_pixels": 1}, "size"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"size": 224}, "size"),
        ({"patch_size": 14}, "patch_size"),
        ({"image_mean": [0.48, 0.45, 0.4]}, "image_mean"),
        ({"merge_size": 1}, "merge_size"),
    ],
)
def test_processor_files_that_ask_for_something_else_are_refused(change, field):
    with pytest.raises(ModelConfigError) as caught:
        PixelBudget.from_json(RULES | change, VISION, file="f.json")
    assert caught.value.field == f"f.json.{field}"


def test_bounds_of_a_job_go_before_the_models():
    budget = PixelBudget(10, 20)
    assert budget.with_bounds(None, None) == budget
    assert budget.with_bounds(5, None) == PixelBudget(5, 20)
    assert budget.with_bounds(None, 15) == PixelBudget(10, 15)


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_broken_processor_files_are_refused(content):
    with pytest.raises(ModelConfigError):
        PixelBudget.from_json(content, VISION, file="f.json")


def test_a_still_pictures_rows_hold_one_frame_which_the_tower_sees_throughout():
    pixels = picture(64, 96, 1)
    still = image_frames(pixels, VISION, WIDE).to_patches()
    shown = video_frames([pixels, pixels], 2, VISION, WIDE).to_patches()
    assert still.rows.shape == (24, VISION.patch_values // 2)
    assert torch.equal(pixel_values(still.rows, VISION), pixel_values(shown.rows, VISION))
    assert torch.equal(torch.cat(join_patches([still, shown], VISION)), shown.rows.repeat(2, 1))
    assert join_patches([still, still], VISION)[1] is still.rows


def test_a_video_of_one_frame_has_the_rows_of_a_picture():
    pixels = picture(64, 96, 1)
    video, image = video_frames([pixels], 1, VISION, WIDE).to_patches(), image_frames(pixels, VISION, WIDE).to_patches()
    assert video.grid == image.grid == PatchGrid(1, 4, 6)
    assert torch.equal(pixel_values(video.rows, VISION), pixel_values(image.rows, VISION))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 7), torch.uint8), ((4, 1536), torch.float32), ((1536,), torch.uint8)]
)
def test_rows_that_are_no_patches_are_refused(shape, dtype):
    with pytest.raises(TensorMismatchError, match="patch rows"):
        pixel_values(torch.zeros(shape, dtype=dtype), VISION)
