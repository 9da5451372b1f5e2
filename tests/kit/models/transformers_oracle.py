"""transformers as the oracle: the same tiny checkpoint, the same prompt, the same pixels, for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging as transformers_logging

from broker_pipeline.messages.activation import Segment, SessionOpen
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, MediaRef, TextPart, VideoPart
from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.decoder import Computed
from stages.compute.generate import Request, deliver_visual_rows, window_spans
from stages.compute.loading import load_vision, vision_tensor_names
from stages.compute.microbatch import Microbatch
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.prompt.chat import Prompt, PromptBuilder, VisualInput, frame_timestamps
from stages.prompt.preprocess import Patches, PixelBudget, join_patches
from stages.prompt.visual_frames import image_frames, video_frames
from stages.qwen3_vl.attention import AttentionName
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import pixel_values
from stages.qwen3_vl.positions import plan_positions
from stages.qwen3_vl.vision import TowerOutput
from stages.qwen3_vl.vision_config import VisionConfig
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.models.tiny_stages import build_stages

transformers_logging.disable_progress_bar()

MEDIA = MediaRef(sha256="0" * 64, object_name="any", num_bytes=1)
IMAGE_BUDGET = PixelBudget(64 * 64, 256 * 256)
VIDEO_BUDGET = PixelBudget(64 * 64, 8 * 256 * 256)
GENERATION_EOS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Variant:
    """One tiny model; `changes`, a JSON object, is merged into its `config.json`."""

    moe: bool
    tied: bool
    dtype: torch.dtype
    changes: str = "{}"

    def __str__(self) -> str:
        kind, head = ("moe" if self.moe else "dense"), ("tied" if self.tied else "untied")
        return f"{kind}-{head}-{str(self.dtype).removeprefix('torch.')}"


FP32 = [Variant(moe, tied, torch.float32) for moe in (False, True) for tied in (True, False)]
BF16 = [Variant(moe, tied, torch.bfloat16) for moe in (False, True) for tied in (True, False)]


@cache
def config_of(variant: Variant) -> ModelConfig:
    return ModelConfig.from_json((_directory(variant) / "config.json").read_bytes())


@cache
def tensors_of(variant: Variant) -> dict[str, Tensor]:
    """Tensors in the runtime layout, by hub name."""
    return load_file(_directory(variant) / "model.safetensors")


@cache
def reference_of(variant: Variant, attention: str = "eager") -> PreTrainedModel:
    """Return the transformers model; experts always in its eager mode, whose order of sums ours follows."""
    experts = {"experts_implementation": "eager"} if variant.moe else {}
    return AutoModelForImageTextToText.from_pretrained(
        _directory(variant), dtype=variant.dtype, attn_implementation=attention, **experts
    ).eval()


def _directory(variant: Variant):
    kind = {"moe": variant.moe, "tied": variant.tied, "dtype": variant.dtype, "changes": variant.changes}
    return tiny_checkpoint(expert_layout="runtime", **kind)


@cache
def prompt_builder(variant: Variant) -> PromptBuilder:
    return PromptBuilder.from_directory(config_of(variant), _directory(variant))


def eos_of(variant: Variant) -> tuple[int, ...]:
    builder = prompt_builder(variant)
    return tuple(builder._tokenizer.token_to_id(token) for token in GENERATION_EOS)


# --- scenes: what a prompt may hold ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A prompt and the patch rows of its pictures and videos, in order."""

    prompt: Prompt
    visuals: tuple[VisualInput, ...]
    patches: tuple[Patches, ...]
    vision: VisionConfig

    @property
    def rows(self) -> Tensor:
        return torch.cat(join_patches(self.patches, self.vision))

    @property
    def grids(self):
        return [patches.grid for patches in self.patches]


def picture(height: int, width: int, seed: int) -> Tensor:
    """Smooth random pixels, uint8 [3, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)


SCENES = ("text", "one image", "three images", "image and odd video")


def scene(variant: Variant, name: str, seed: int = 0) -> Scene:
    vision = config_of(variant).vision
    image = lambda h, w, i: image_frames(picture(h, w, seed * 100 + i), vision, IMAGE_BUDGET).to_patches()  # noqa: E731
    text = TextPart(text=f"Describe this picture in one sentence. {seed}")
    if name == "text":
        return _scene(variant, (text,), ())
    if name == "one image":
        return _scene(variant, (ImagePart(media=MEDIA), text), (image(96, 128, 1),))
    if name == "three images":
        parts = (ImagePart(media=MEDIA), text, ImagePart(media=MEDIA), ImagePart(media=MEDIA), text)
        return _scene(variant, parts, (image(64, 192, 1), image(130, 70, 2), image(64, 64, 3)))
    frames = [picture(70, 100, seed * 100 + i) for i in range(5)]
    video = video_frames(frames, len(frames), vision, VIDEO_BUDGET).to_patches()
    parts = (VideoPart(frames=(MEDIA,) * 5, fps=2.0), ImagePart(media=MEDIA), text)
    return _scene(variant, parts, (video, image(64, 96, 9)))


def _scene(variant: Variant, parts, patches: tuple[Patches, ...]) -> Scene:
    visuals = tuple(
        VisualInput("video", p.grid, frame_timestamps([0, 0.5, 1, 1.5, 2]))
        if p.grid.frames > 1
        else VisualInput("image", p.grid)
        for p in patches
    )
    prompt = prompt_builder(variant).build([ChatMessage(role="user", content=parts)], visuals)
    return Scene(prompt, visuals, patches, config_of(variant).vision)


# --- the oracle's side -----------------------------------------------------------------------------------------------


def reference_inputs(variant: Variant, scene: Scene) -> dict[str, Any]:
    """Return what transformers' processor would give the model."""
    config, ids = config_of(variant), scene.prompt.token_ids
    kinds = {config.image_token_id: 1, config.video_token_id: 2}
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    inputs["mm_token_type_ids"] = torch.tensor([[kinds.get(i, 0) for i in ids]])
    for kind, pixels, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        own = [p for v, p in zip(scene.visuals, scene.patches, strict=True) if v.kind == kind]
        if own:
            inputs[pixels] = torch.cat([pixel_values(p.rows, scene.vision) for p in own]).to(variant.dtype)
            inputs[grids] = torch.tensor([[p.grid.frames, p.grid.height, p.grid.width] for p in own])
    return inputs


@torch.no_grad()
def reference_logits(variant: Variant, scene: Scene, attention: str = "eager") -> Tensor:
    """Logits [n, V] of every prompt token."""
    model = reference_of(variant, attention)
    return model(**reference_inputs(variant, scene)).logits[0]


@torch.no_grad()
def reference_tokens(variant: Variant, scene: Scene, num_tokens: int) -> list[int]:
    """Greedy tokens of `generate`."""
    model = reference_of(variant)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    output = model.generate(**reference_inputs(variant, scene), max_new_tokens=num_tokens, **greedy)
    return output[0, len(scene.prompt.token_ids) :].tolist()


# --- our side --------------------------------------------------------------------------------------------------------


def encode(variant: Variant, scene: Scene, attention: AttentionName = "eager") -> TowerOutput | None:
    if not scene.patches:
        return None
    config = config_of(variant)
    own = {name: tensors_of(variant)[name] for name in vision_tensor_names(config)}
    tower = load_vision(config, own, ComputeOptions(attention=attention))
    return tower.encode(scene.rows, scene.grids)


def stages_of(
    variant: Variant, cuts: Sequence[int] = (), attention: AttentionName = "eager", capacity: int = 2048, **more
) -> list[StageCompute]:
    options = ComputeOptions(attention=attention, **more)
    tensors = tensors_of(variant)
    return build_stages(config_of(variant), tensors, cuts, kv_capacity_tokens=capacity, options=options)


def request_of(variant: Variant, scene: Scene, *, session: str = "s", num_tokens: int = 16, **changes) -> Request:
    return Request(
        session,
        scene.prompt.token_ids,
        scene.prompt.groups,
        changes.pop("rows", None) or encode(variant, scene),
        max_tokens=num_tokens,
        eos_token_ids=eos_of(variant),
        **changes,
    )


def prompt_logits(
    stages: Sequence[StageCompute], scene: Scene, rows: TowerOutput | None, chunk_tokens: int | None = None
) -> Tensor:
    """Logits [n, V] of every prompt token, through all stages, in chunks."""
    ids = torch.tensor(scene.prompt.token_ids, dtype=torch.int32)
    positions = plan_positions(len(ids), scene.prompt.groups).positions
    opening = SessionOpen(
        session="logits",
        attempt=1,
        num_kv_tokens=len(ids),
        num_prompt_tokens=len(ids),
        sampling=SamplingSettings(),
    )
    for stage in stages:
        stage.open(opening)
    if rows is not None:
        deliver_visual_rows(stages, "logits", 1, rows)
    size = chunk_tokens or len(ids)
    chunks = [
        _chunk_logits(stages, scene, ids, positions, start, min(size, len(ids) - start))
        for start in range(0, len(ids), size)
    ]
    for stage in stages:
        stage.close("logits", 1)
    return torch.cat(chunks)


def _chunk_logits(
    stages: Sequence[StageCompute], scene: Scene, ids: Tensor, positions: Tensor, start: int, count: int
) -> Tensor:
    spans = window_spans(scene.prompt.groups, start, count)
    segment = Segment(session="logits", attempt=1, start=start, count=count, visual=spans)
    window = slice(start, start + count)
    batch = Microbatch((segment,), positions[:, window], token_ids=ids[window])
    for stage in stages[:-1]:
        output = stage.run(batch)
        assert not output.failures
        batch = Microbatch(output.segments, output.positions, hidden=output.hidden)
    decoder, seen = stages[-1].decoder, []
    decoder.step = lambda batch, injection, _: seen.append(decoder.forward(batch, injection)) or Computed()
    try:
        assert not stages[-1].run(batch).failures
    finally:
        del decoder.step
    return decoder.logits(seen[0], range(count))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, over the largest magnitude of the oracle's values."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
