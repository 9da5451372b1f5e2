"""What transformers makes of the scenes: its chat template and tokenizer, its image processor, its timestamps.

Its video processor wants torchvision, which this does without: a stand-in sends a video's frames through the image
processor, unresized, and puts them together. Everything else is transformers' own processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from export.parity.judge import Judge
from export.parity.part import FP32_TOLERANCE, Difference, Pair, Part
from export.parity.scenes import FPS, Scene
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.vision_config import VisionConfig

_RESIZED_TOLERANCE = 1.5 / 127.5
"""A grey level: the fixed-point filters of Pillow and of torch differ by that."""


class _VideoFrames:
    """Stands in for transformers' video processor."""

    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, images: Any, vision: VisionConfig) -> None:
        self._images = images
        self._vision = vision
        self.merge_size, self.temporal_patch_size = vision.spatial_merge_size, vision.temporal_patch_size

    def __call__(self, videos: list[list[Image.Image]], **_: object) -> dict[str, object]:
        [frames], temporal = videos, self.temporal_patch_size
        filled = frames + frames[-1:] * (-len(frames) % temporal)
        found = self._images(images=filled, return_tensors="pt", do_resize=False, temporal_patch_size=1)
        _, height, width = found["image_grid_thw"][0].tolist()
        shape = (-1, temporal, height * width, self._vision.in_channels, self._vision.patch_size**2)
        rows = found["pixel_values"].view(shape).permute(0, 2, 3, 1, 4)
        return {
            "pixel_values_videos": rows.reshape(-1, self._vision.patch_values),
            "video_grid_thw": torch.tensor([[len(filled) // temporal, height, width]]),
            "video_metadata": [SimpleNamespace(fps=FPS, frames_indices=list(range(len(frames))))],
        }


class _Processor(Qwen3VLProcessor):  # type: ignore[misc]
    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> None:
        """Accept the stand-in."""


class Processor:
    """transformers' processor of a checkpoint's files."""

    def __init__(self, checkpoint: Path, config: ModelConfig) -> None:
        """Read the checkpoint's tokenizer, template and rules for pictures."""
        images, tokenizer = AutoImageProcessor.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
        template = Qwen3VLProcessor.get_processor_dict(checkpoint)[0].get("chat_template")
        self._processor: Any = _Processor(
            images, tokenizer, _VideoFrames(images, config.vision), chat_template=template or tokenizer.chat_template
        )

    def inputs(self, scene: Scene) -> dict[str, Tensor]:
        """Return what the model gets of a scene, by transformers' names."""
        turns = [msgspec.to_builtins(message) for message in scene.messages]
        text = self._processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        visuals: dict[str, list[Any]] = {}
        for frames in scene.visuals:
            seen = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
            kind, value = ("videos", seen) if len(seen) > 1 else ("images", seen[0])
            visuals.setdefault(kind, []).append(value)
        return dict(self._processor(text=[text], **visuals, return_tensors="pt"))


def compare_prompts(processor: Processor, judge: Judge, scenes: tuple[Scene, ...], config: ModelConfig) -> list[Part]:
    """Compare what is computed before any weight is needed, by the names of transformers' inputs."""
    pairs: dict[str, list[tuple[Scene, Pair]]] = {}
    for scene in scenes:
        theirs = processor.inputs(scene) | judge.positions(scene)
        positions = {"position_ids": scene.plan.positions.long(), "rope_deltas": torch.tensor(scene.plan.delta)}
        ours = scene.inputs(config) | positions
        for name in sorted(theirs.keys() - {"attention_mask"}):
            found = ours.get(name, torch.zeros(0))
            resized = ", resized" if name == "pixel_values" and scene.name.startswith("resized") else ""
            pairs.setdefault(name + resized, []).append((scene, (found, theirs[name])))
    return [_part(name, found) for name, found in sorted(pairs.items())]


def _part(name: str, found: list[tuple[Scene, Pair]]) -> Part:
    findings = tuple(_findings(found))
    if not name.startswith("pixel_values") or findings:
        return Part(name, findings=findings)
    tolerance = _RESIZED_TOLERANCE if name.endswith("resized") else FP32_TOLERANCE
    return Part(name, Difference.of([pair for _, pair in found]), tolerance)


def _findings(found: list[tuple[Scene, Pair]]) -> Iterator[str]:
    for scene, (ours, theirs) in found:
        if ours.shape != theirs.shape:
            yield f"{scene.name}: shape {list(ours.shape)} instead of {list(theirs.shape)}"
        elif not theirs.is_floating_point() and not torch.equal(ours, theirs):
            at = tuple((ours != theirs).nonzero()[0].tolist())
            yield f"{scene.name}: {int(ours[at])} instead of {int(theirs[at])} at {list(at)}"
