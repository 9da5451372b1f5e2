"""Pictures and videos of prompts: fetched, looked at, encoded. Twice the same bytes are encoded once.

look      media store ─► decode, resize, cut (thread pool) ─► patches, grid    enough to lay out the prompt
encode    patches ─► tower (batched) ─► output                                 only once the prompt is known to fit
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from broker_pipeline.messages.jobs import (
    ImagePart,
    MediaRef,
    PixelBounds,
    VideoFilePart,
    VideoPart,
    VisualPart,
)
from broker_pipeline.tracing.activities import DECODE, FETCH, PATCHES
from broker_pipeline.tracing.tracer import tracer
from stages.prompt.chat import VisualInput, frame_timestamps
from stages.prompt.preprocess import Patches
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision import TowerOutput
from stages.vision.cache import EncodedVisual, VisionCache
from stages.vision.decoding import PixelRules, decode
from stages.vision.single_flight import SingleFlight
from stages.vision.tower_batcher import TowerBatcher
from stages.vision.work_pools import WorkPools
from stages.worker.together import together

T = TypeVar("T")


class MediaSource(Protocol):
    """Where the bytes of media come from (see `broker_pipeline.storage.media`)."""

    async def get(self, ref: MediaRef) -> bytes:
        """Return the bytes, or raise MediaMissingError."""


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
        pools: WorkPools,
        max_pictures: int,
    ) -> None:
        """At most `max_pictures` are fetched and decoded at the same time."""
        self._media = media
        self._batcher = batcher
        self._cache = cache
        self._rules = rules
        self._pools = pools
        self._look_slots = asyncio.Semaphore(max_pictures)
        self._looks: SingleFlight[Look] = SingleFlight()
        self._encodings: SingleFlight[TowerOutput] = SingleFlight()

    async def look(self, part: VisualPart) -> Look:
        """Fetch and decode a picture or video, or recall its grid.

        Raises:
            MediaError: it is gone, or cannot be used; says why.
        """
        key = _key_of(part)
        cached = self._cache.get(key)
        if cached is not None:
            return Look(key, _input_of(part, cached.grid, cached.timestamps), cached.output)
        places = [
            (ref.url, ref.offset) for ref in _refs(part) if ref.url
        ]  # one that is wrong fails nobody who has a right one
        return await self._looks.run(f"{key} {places}", lambda: self._look(key, part))

    async def encode(self, look: Look) -> TowerOutput:
        """Return what the tower makes of a picture or video.

        Raises:
            ComputeError: the tower failed on it.
        """
        content = look.content
        if isinstance(content, TowerOutput):
            return content
        return await self._encodings.run(look.key, lambda: self._encode(look, content))

    async def encode_all(self, looks: Sequence[Look]) -> TowerOutput:
        """Return what the tower makes of all pictures of a prompt as one, in order.

        Raises:
            ComputeError: the tower failed on one of them.
        """
        return await self._batcher.join(await together(self.encode(look) for look in looks))

    async def _look(self, key: str, part: VisualPart) -> Look:
        async with self._look_slots:
            started = time.monotonic()
            refs = _refs(part)
            with tracer.measure(FETCH, num_media=len(refs)):
                contents = [await self._media.get(ref) for ref in refs]
            fetched = time.monotonic()
            patches, timestamps = await self._pools.for_pictures(contents, lambda: self._preprocess(part, contents))
        visual = _input_of(part, patches.grid, timestamps)
        return Look(key, visual, patches, fetched - started, time.monotonic() - fetched)

    def _preprocess(self, part: VisualPart, contents: list[bytes]) -> tuple[Patches, tuple[float, ...]]:
        with tracer.measure(DECODE):
            frames, times = decode(part, contents, self._rules)
        with tracer.measure(PATCHES):
            return frames.to_patches(), frame_timestamps(times, self._rules.vision.temporal_patch_size)

    async def _encode(self, look: Look, patches: Patches) -> TowerOutput:
        cached = self._cache.peek(look.key)
        if cached is not None:
            return cached.output
        output = await self._batcher.encode(patches)
        self._cache.put(look.key, EncodedVisual(patches.grid, output, look.visual.timestamps))
        return output


def _refs(part: VisualPart) -> tuple[MediaRef, ...]:
    return part.frames if isinstance(part, VideoPart) else (part.media,)


def _key_of(part: VisualPart) -> str:
    """Name what the output depends on: the bytes of a picture or video, in order, and how they are looked at."""
    bounds = "" if part.bounds == PixelBounds() else f"-{part.bounds.min_pixels}-{part.bounds.max_pixels}"
    if isinstance(part, ImagePart):
        return part.media.sha256 + bounds
    if isinstance(part, VideoFilePart):
        return f"video-{part.media.sha256}-{part.fps}-{part.max_frames}{bounds}"
    frames = "".join(frame.sha256 for frame in part.frames) + repr(part.frame_times)
    return f"video-{hashlib.sha256(frames.encode()).hexdigest()}{bounds}"


def _input_of(part: VisualPart, grid: PatchGrid, timestamps: tuple[float, ...]) -> VisualInput:
    return VisualInput("image", grid) if isinstance(part, ImagePart) else VisualInput("video", grid, timestamps)
