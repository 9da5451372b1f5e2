from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch

from broker_pipeline.errors import ComputeError
from stages.compute.loading import load_vision, vision_tensor_names
from stages.prompt.preprocess import Patches
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision import VisionTower
from stages.vision.tower_batcher import BatchLimits, TowerBatcher
from stages.vision.tower_lane import TowerLane
from stages.worker.compute_thread import ComputeThread
from tests.kit.models.tiny_stages import tiny_config, tiny_tensors


def tower() -> VisionTower:
    config, tensors = tiny_config(), tiny_tensors()
    return load_vision(config, {name: tensors[name] for name in vision_tensor_names(config)})


def patches(height: int, width: int, seed: int) -> Patches:
    generator = torch.Generator().manual_seed(seed)
    size = height * width, tiny_config().vision.patch_values
    rows = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return Patches(rows, PatchGrid(1, height, width))


@asynccontextmanager
async def serving(
    max_patches: int, max_pictures: int | None = None
) -> AsyncIterator[tuple[TowerBatcher, ComputeThread]]:
    thread, finishing = ComputeThread(), ComputeThread()
    batcher = TowerBatcher(TowerLane(tower()), BatchLimits(max_patches, max_pictures), thread, finishing)
    task = asyncio.create_task(batcher.serve())
    yield batcher, thread
    task.cancel()
    thread.close()
    finishing.close()


async def test_pictures_that_wait_are_encoded_together_and_as_if_alone() -> None:
    shapes = [patches(4, 4, 1), patches(2, 6, 2), patches(8, 4, 3)]
    async with serving(1000) as (batcher, thread):
        gate = threading.Event()
        blocked = thread.submit(gate.wait)
        first = asyncio.create_task(batcher.encode(shapes[0]))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.encode(shape)) for shape in shapes[1:]]
        await asyncio.sleep(0.01)
        gate.set()
        rows = [await task for task in [first, *rest]]
        await blocked
        assert (batcher.num_batches, batcher.num_visual_rows) == (2, 4 + 3 + 8)
    for shape, found in zip(shapes, rows, strict=True):
        alone = tower().encode(shape.rows, [shape.grid])
        torch.testing.assert_close(found.embeds, alone.embeds, rtol=1e-5, atol=1e-5)
        for level, expected in zip(found.levels, alone.levels, strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)


async def test_batches_stay_below_the_bound_but_one_large_picture_passes() -> None:
    async with serving(16) as (batcher, _):
        await asyncio.gather(
            *(batcher.encode(patches(4, 4, seed)) for seed in range(3)), batcher.encode(patches(8, 8, 9))
        )
        assert batcher.num_batches == 4


async def test_a_picture_that_breaks_the_tower_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(1000) as (batcher, _):
        real = batcher._lane.tower.encode

        def encode(rows: torch.Tensor, grids: list[PatchGrid]) -> object:
            if (rows == 0).all(1).any():
                raise RuntimeError("out of memory")
            return real(rows, grids)

        monkeypatch.setattr(batcher._lane.tower, "encode", encode)
        poison = patches(4, 4, 1)
        poison.rows[0] = 0
        outcomes = await asyncio.gather(
            batcher.encode(patches(4, 4, 2)), batcher.encode(poison), batcher.encode(patches(4, 4, 3)),
            return_exceptions=True,
        )  # fmt: skip
        assert [isinstance(outcome, ComputeError) for outcome in outcomes] == [False, True, False]


async def test_a_caller_that_gave_up_is_not_computed_for() -> None:
    async with serving(1000) as (batcher, thread):
        gate = threading.Event()
        blocked = thread.submit(gate.wait)
        first = asyncio.create_task(batcher.encode(patches(4, 4, 1)))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(batcher.encode(patches(4, 4, 2)))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0.01)
        gate.set()
        await first
        await blocked
        await batcher.encode(patches(4, 4, 3))
        assert batcher.num_visual_rows == 8


async def test_one_picture_a_batch_gives_the_bits_of_the_picture_alone() -> None:
    shapes = [patches(4, 4, 1), patches(8, 8, 2), patches(4, 4, 3), patches(2, 6, 4)]
    async with serving(1000, max_pictures=1) as (batcher, _):
        rows = await asyncio.gather(*(batcher.encode(shape) for shape in shapes))
        assert batcher.num_batches == 4
    for shape, found in zip(shapes, rows, strict=True):
        assert torch.equal(found.embeds, tower().encode(shape.rows, [shape.grid]).embeds)


async def test_stills_and_videos_share_a_batch() -> None:
    video = patches(4, 4, 1)
    still = Patches(patches(4, 6, 2).rows[:, : video.rows.shape[1] // 2].contiguous(), PatchGrid(1, 4, 6))
    async with serving(1000) as (batcher, _):
        found = await asyncio.gather(batcher.encode(video), batcher.encode(still), batcher.encode(video))
    alone = tower().encode(still.rows, [still.grid])
    torch.testing.assert_close(found[1].embeds, alone.embeds, rtol=1e-5, atol=1e-5)


async def test_a_tower_is_busy_while_it_encodes() -> None:
    async with serving(1000) as (batcher, _):
        await asyncio.sleep(0.05)
        assert batcher.busy_s == 0
        await batcher.encode(patches(8, 8, 1))
        busy_s = batcher.busy_s
        await asyncio.sleep(0.05)
        assert 0 < batcher.busy_s == busy_s


async def test_rows_of_a_prompt_are_joined_in_order() -> None:
    async with serving(1000) as (batcher, _):
        rows = await asyncio.gather(*(batcher.encode(patches(4, 4, seed)) for seed in range(3)))
        joined = await batcher.join(rows)
        assert torch.equal(joined.embeds, torch.cat([each.embeds for each in rows]))
        assert torch.equal(joined.levels[2], torch.cat([each.levels[2] for each in rows]))
        assert await batcher.to_host(joined) is joined
