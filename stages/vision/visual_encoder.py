"""Pictures and videos of prompts: fetched, looked at, encoded. Twice the same bytes are encoded once.

look      media store ─► decode, resize, cut (thread pool) ─► patches, grid    enough to lay out the prompt
encode    patches ─► tower (batched) ─► output                                 only once the prompt is known to fit
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import ImagePart, MediaRef, PixelBounds, VideoPart
from broker_pipeline.pictures.colour import WHITE, Colour
from broker_pipeline.pictures.rule import PictureRule, check_bounds
from broker_pipeline.tracing.activities import DECODE, FETCH, PATCHES
from broker_pipeline.tracing.tracer import tracer
from stages.prompt.chat import VisualInput, frame_timestamps
from stages.prompt.images import decode_image
from stages.prompt.preprocess import Patches, PixelBudget
from stages.prompt.visual_frames import VisualFrames, image_frames, video_frames
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision import TowerOutput
from stages.qwen3_vl.vision_config import VisionConfig
from stages.vision.cache import EncodedVisual, VisionCache
from stages.vision.single_flight import SingleFlight
from stages.vision.tower_batcher import TowerBatcher
from stages.worker.together import together

T = TypeVar("T")


class MediaSource(Protocol):
    """Where the bytes of media come from (see `broker_pipeline.storage.media`)."""

    async def get(self, ref: MediaRef) -> bytes:
        """Return the bytes, or raise MediaMissingError."""


@dataclass(frozen=True, slots=True)
class PixelRules:
    """How this model wants its pictures. `video` is None where the artifact says nothing about videos."""

    vision: VisionConfig
    image: PixelBudget
    video: PixelBudget | None
    pictures: PictureRule
    background: Colour = WHITE


@dataclass(frozen=True, slots=True)
class Look:
    """One picture or video as far as the prompt needs it, and its encoding or the patches for it."""

    key: str
    visual: VisualInput
    content: TowerOutput | Patches
    fetch_s: float = 0.0
    preprocess_s: float = 0.0


class VisualEncoder:
    """Everything between a media reference and what the tower makes of it."""

    def __init__(
        self,
        media: MediaSource,
        batcher: TowerBatcher,
        cache: VisionCache,
        rules: PixelRules,
        pool: Executor,
        max_pictures: int,
    ) -> None:
        """At most `max_pictures` are fetched and decoded at the same time."""
        self._media = media
        self._batcher = batcher
        self._cache = cache
        self._rules = rules
        self._pool = pool
        self._look_slots = asyncio.Semaphore(max_pictures)
        self._looks: SingleFlight[Look] = SingleFlight()
        self._encodings: SingleFlight[TowerOutput] = SingleFlight()

    async def look(self, part: ImagePart | VideoPart) -> Look:
        """Fetch and decode a picture or video, or recall its grid.

        Raises:
            MediaError: it is gone, or cannot be used; says why.
        """
        key = _key_of(part)
        cached = self._cache.get(key)
        if cached is not None:
            return Look(key, _input_of(part, cached.grid, self._rules.vision), cached.output)
        return await self._looks.run(key, lambda: self._look(key, part))

    async def encode(self, look: Look) -> TowerOutput:
        """Return what the tower makes of a picture or video.

        Raises:
            ComputeError: the tower failed on it.
        """
        content = look.content
        if isinstance(content, TowerOutput):
            return content
        return await self._encodings.run(look.key, lambda: self._encode(look.key, content))

    async def encode_all(self, looks: Sequence[Look]) -> TowerOutput:
        """Return what the tower makes of all pictures of a prompt as one, in order.

        Raises:
            ComputeError: the tower failed on one of them.
        """
        return await self._batcher.join(await together(self.encode(look) for look in looks))

    async def _look(self, key: str, part: ImagePart | VideoPart) -> Look:
        async with self._look_slots:
            started = time.monotonic()
            refs = (part.media,) if isinstance(part, ImagePart) else part.frames
            with tracer.measure(FETCH, num_media=len(refs)):
                contents = [await self._media.get(ref) for ref in refs]
            fetched = time.monotonic()
            patches = await self._in_pool(lambda: self._preprocess(part, contents))
        visual = _input_of(part, patches.grid, self._rules.vision)
        return Look(key, visual, patches, fetched - started, time.monotonic() - fetched)

    def _preprocess(self, part: ImagePart | VideoPart, contents: list[bytes]) -> Patches:
        with tracer.measure(DECODE):
            frames = self._decode(part, contents)
        with tracer.measure(PATCHES):
            return frames.to_patches()

    def _decode(self, part: ImagePart | VideoPart, contents: list[bytes]) -> VisualFrames:
        rules = self._rules
        if isinstance(part, ImagePart):
            pixels = decode_image(contents[0], rules.pictures, rules.background)
            return image_frames(pixels, rules.vision, _budget(rules.image, part.bounds))
        if rules.video is None:
            raise InvalidRequestError("this model's artifact has no video_preprocessor_config.json", field="messages")
        rules.pictures.check_frames(len(contents))
        frames = (decode_image(content, rules.pictures, rules.background) for content in contents)
        return video_frames(frames, len(contents), rules.vision, _budget(rules.video, part.bounds))

    async def _encode(self, key: str, patches: Patches) -> TowerOutput:
        cached = self._cache.peek(key)
        if cached is not None:
            return cached.output
        output = await self._batcher.encode(patches)
        self._cache.put(key, EncodedVisual(patches.grid, output))
        return output

    def _in_pool(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work)


def _budget(own: PixelBudget, bounds: PixelBounds) -> PixelBudget:
    check_bounds(bounds.min_pixels, bounds.max_pixels, own.max_pixels, "messages")
    return own.with_bounds(bounds.min_pixels, bounds.max_pixels)


def _key_of(part: ImagePart | VideoPart) -> str:
    """Name what the output depends on: the bytes of a picture, or of all frames of a video in order, and bounds."""
    bounds = "" if part.bounds == PixelBounds() else f"-{part.bounds.min_pixels}-{part.bounds.max_pixels}"
    if isinstance(part, ImagePart):
        return part.media.sha256 + bounds
    return "video-" + hashlib.sha256("".join(frame.sha256 for frame in part.frames).encode()).hexdigest() + bounds


def _input_of(part: ImagePart | VideoPart, grid: PatchGrid, vision: VisionConfig) -> VisualInput:
    if isinstance(part, ImagePart):
        return VisualInput("image", grid)
    return VisualInput("video", grid, frame_timestamps(len(part.frames), part.fps, vision.temporal_patch_size))
