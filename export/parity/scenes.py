"""Generated prompts for both sides: texts of several turns, pictures with and without resizing, a video.

Nothing is left to chance, so that a comparison that was interrupted goes on with the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.messages.jobs import ChatMessage, ImagePart, MediaRef, TextPart, VideoPart
from stages.artifact import Artifact
from stages.prompt.chat import Prompt, PromptBuilder, VisualInput, frame_timestamps
from stages.prompt.pixel_budgets import read_pixel_budgets
from stages.prompt.preprocess import Patches, PixelBudget, join_patches
from stages.prompt.visual_frames import image_frames, video_frames
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import PatchGrid, pixel_values
from stages.qwen3_vl.positions import PositionPlan, plan_positions

FPS = 2.0
_NUM_FRAMES = 5
"""Odd: the last one is shown twice."""
_MEDIA = MediaRef(sha256="0" * 64, object_name="none", num_bytes=1)
_IMAGE = ImagePart(media=_MEDIA)
_VIDEO = VideoPart(frames=(_MEDIA,) * _NUM_FRAMES, fps=FPS)
_DESCRIBE = TextPart(text="Describe this picture in one sentence.")
_PROSE = TextPart(text="  Zeile eins\n\n  Zeile zwei\t12345 don't ünïcödé e\u0301 漢字 🙂 ")
_CODE = TextPart(text="def f(x):\n    return {'a': [1, 2.5e-3]}  # <think> or not")

Content = TextPart | ImagePart | VideoPart
Frames = tuple[Tensor, ...]
"""A picture (one frame) or a video: frames uint8 `[3, height, width]`, all of one size."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A conversation with its visuals, and what our workers make of it."""

    name: str
    messages: tuple[ChatMessage, ...]
    visuals: tuple[Frames, ...]
    patches: tuple[Patches, ...]
    prompt: Prompt
    plan: PositionPlan

    @property
    def token_ids(self) -> Tensor:
        """Token ids, int64 `[n]`."""
        return torch.tensor(self.prompt.token_ids)

    @property
    def grids(self) -> list[PatchGrid]:
        """Grids of the visuals."""
        return [patches.grid for patches in self.patches]

    @property
    def visual_places(self) -> Tensor:
        """Places of the visual tokens in the prompt, int64 `[r]`."""
        return torch.cat([torch.arange(group.start, group.start + group.count) for group in self.prompt.groups])

    def patch_rows(self, config: ModelConfig) -> Tensor:
        """Return the patch rows uint8 `[N, values]` of all visuals, of which there is at least one."""
        return torch.cat(join_patches(self.patches, config.vision))

    def inputs(self, config: ModelConfig) -> dict[str, Tensor]:
        """Return what transformers' processor would give the model, by its names; pixels are float32."""
        ids = self.token_ids[None]
        kinds = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id)
        inputs = {"input_ids": ids, "mm_token_type_ids": kinds}
        for is_video, grids, pixels in (
            (False, "image_grid_thw", "pixel_values"),
            (True, "video_grid_thw", "pixel_values_videos"),
        ):
            own = [cut for frames, cut in zip(self.visuals, self.patches, strict=True) if is_video == (len(frames) > 1)]
            if own:
                inputs[grids] = grid_rows([cut.grid for cut in own])
                inputs[pixels] = torch.cat([pixel_values(cut.rows, config.vision) for cut in own])
        return inputs


def grid_rows(grids: Sequence[PatchGrid]) -> Tensor:
    """Return frames, height and width of each grid in patches, int64 `[v, 3]`."""
    return torch.tensor([[grid.frames, grid.height, grid.width] for grid in grids])


class SceneMaker:
    """Prepares conversations as a vision worker does."""

    def __init__(self, artifact: Artifact) -> None:
        """Read tokenizer, template and rules for pictures and, where there are such, for videos.

        Raises:
            ModelConfigError: one of them is missing or wrong.
        """
        self._vision = artifact.config.vision
        self._prompts = PromptBuilder.from_directory(artifact.config, artifact.directory)
        self._image, self._video = read_pixel_budgets(artifact.directory, self._vision)

    def make_all(self) -> Iterator[Scene]:
        """Yield every scene."""
        turns = [_say(_PROSE, role="system"), _say(_CODE), _say(_PROSE, role="assistant"), _say(_DESCRIBE)]
        yield self._make("texts", turns)
        side = self._fitting_side(self._image, 1)
        fitting, resized = _pictures(1, side, side, 1), _pictures(1, side - 19, side + 45, 2)
        yield self._make("picture", [_say(_IMAGE, _DESCRIBE)], fitting)
        yield self._make("resized pictures", [_say(_IMAGE, _DESCRIBE, _IMAGE)], resized, fitting)
        if self._video is not None:
            height = self._fitting_side(self._video, _NUM_FRAMES - 1)
            video = _pictures(_NUM_FRAMES, height, height + self._vision.pixel_factor, 10)
            yield self._make("video", [_say(_VIDEO, _IMAGE, _DESCRIBE)], video, fitting)

    def _make(self, name: str, messages: Sequence[ChatMessage], *visuals: Frames) -> Scene:
        patches = tuple(self._cut(frames) for frames in visuals)
        inputs = [self._input(frames, cut.grid) for frames, cut in zip(visuals, patches, strict=True)]
        prompt = self._prompts.build(messages, inputs)
        plan = plan_positions(len(prompt.token_ids), prompt.groups)
        return Scene(name, tuple(messages), visuals, patches, prompt, plan)

    def _cut(self, frames: Frames) -> Patches:
        if self._video is None or len(frames) == 1:
            return image_frames(frames[0], self._vision, self._image).to_patches()
        return video_frames(frames, len(frames), self._vision, self._video).to_patches()

    def _input(self, frames: Frames, grid: PatchGrid) -> VisualInput:
        if len(frames) == 1:
            return VisualInput("image", grid)
        return VisualInput("video", grid, frame_timestamps(_VIDEO.frame_times, self._vision.temporal_patch_size))

    def _fitting_side(self, budget: PixelBudget, num_frames: int) -> int:
        """Return the side of the smallest square that needs no resizing."""
        factor = self._vision.pixel_factor
        return math.ceil(math.sqrt(budget.min_pixels / num_frames) / factor) * factor


def _say(*parts: Content, role: Literal["system", "user", "assistant"] = "user") -> ChatMessage:
    return ChatMessage(role=role, content=parts)


def _pictures(count: int, height: int, width: int, seed: int) -> Frames:
    """Draw smooth random pixels."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return tuple(F.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8))
