"""Prompts, positions and patch rows against transformers' tokenizer, processor code and position planning."""

from __future__ import annotations

import ast
import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from broker_pipeline.errors import ImageShapeError
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, TextPart, VideoPart
from broker_pipeline.pictures.video import VideoHeader
from stages.pictures.video_frames import sampled_indices
from stages.prompt.chat import VisualInput, frame_timestamps
from stages.prompt.pixel_budgets import read_pixel_budgets
from stages.prompt.preprocess import PixelBudget, fit_size, fit_video_size
from stages.prompt.visual_frames import image_frames, video_frames
from stages.qwen3_vl.patches import PatchGrid, pixel_values
from stages.qwen3_vl.positions import plan_positions
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.models.transformers_oracle import (
    FP32,
    IMAGE_BUDGET,
    MEDIA,
    SCENES,
    VIDEO_BUDGET,
    config_of,
    picture,
    prompt_builder,
    reference_inputs,
    reference_of,
    scene,
)

VARIANT = FP32[0]
TEXTS = [
    "Describe this picture.",
    "  Zeile eins\n\n  Zeile zwei\t<think> 12345 don't ünïcödé e\u0301 漢字 🙂 ",
    "<tool_call>{}</tool_call> <|fim_prefix|> <|box_start|>(1,2)<|box_end|>",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_checkpoint())


# --- chat ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add_vision_id", [False, True])
def test_a_chat_is_tokenised_as_transformers_does(tokenizer, text, add_vision_id):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": text}, {"type": "image"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, add_vision_id=add_vision_id
    )
    for count in (6, 4):  # what transformers' processor does with one pad token per picture
        rendered = rendered.replace("<|image_pad|>", "<|placeholder|>" * count, 1)
    expected = tokenizer(rendered.replace("<|placeholder|>", "<|image_pad|>"))["input_ids"]
    visuals = [VisualInput("image", PatchGrid(1, 4, 6)), VisualInput("image", PatchGrid(1, 2, 8))]
    found = prompt_builder(VARIANT).build(_turns(messages), visuals, add_vision_id=add_vision_id)
    assert list(found.token_ids) == expected


def _turns(messages) -> list[ChatMessage]:
    def part(content):
        return ImagePart(media=MEDIA) if content["type"] == "image" else TextPart(text=content["text"])

    return [ChatMessage(role=m["role"], content=tuple(map(part, m["content"]))) for m in messages]


@pytest.mark.parametrize(("num_frames", "fps"), [(4, 2.0), (5, 2.0), (7, 24.0), (2, 0.7)])
def test_a_video_gets_the_timestamps_of_transformers(tokenizer, num_frames, fps):
    grid = (math.ceil(num_frames / 2), 4, 6)
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token="<|video_pad|>",
        _calculate_timestamps=lambda *a: Qwen3VLProcessor._calculate_timestamps(None, *a),
    )
    metadata = SimpleNamespace(fps=fps, frames_indices=list(range(num_frames)))
    inputs = {"video_grid_thw": np.array([grid]), "video_metadata": [metadata]}
    expanded = Qwen3VLProcessor.replace_video_token(processor, inputs, 0)
    text = f"<|im_start|>user\n<|vision_start|>{expanded}<|vision_end|>Go<|im_end|>\n<|im_start|>assistant\n"
    message = ChatMessage(role="user", content=(VideoPart(frames=(MEDIA,)), TextPart(text="Go")))
    video = VisualInput("video", PatchGrid(*grid), frame_timestamps([index / fps for index in range(num_frames)]))
    found = prompt_builder(VARIANT).build([message], [video])
    assert list(found.token_ids) == tokenizer(text)["input_ids"]


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENES)
def test_positions_and_delta_equal_those_of_transformers(name):
    shown = scene(VARIANT, name)
    inputs = reference_inputs(VARIANT, shown)
    expected, deltas = reference_of(VARIANT).model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs.get("image_grid_thw"),
        video_grid_thw=inputs.get("video_grid_thw"),
    )
    plan = plan_positions(len(shown.prompt.token_ids), shown.prompt.groups)
    assert plan.positions.dtype == torch.int32
    assert torch.equal(plan.positions.long(), expected[:, 0])
    assert plan.delta == int(deltas)


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 128), (256, 32), (160, 224)])
def test_patch_rows_of_a_picture_that_needs_no_resizing_are_identical(height, width):
    pixels = picture(height, width, seed=height + width)
    processor = Qwen2VLImageProcessorPil.from_pretrained(tiny_checkpoint())
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    expected = processor(images=[image], return_tensors="pt", do_resize=False)
    found = image_frames(pixels, config_of(VARIANT).vision, PixelBudget(1, 10**9)).to_patches()
    assert expected["image_grid_thw"].tolist() == [[1, found.grid.height, found.grid.width]]
    # transformers' Pillow path rescales and normalises in two steps: one rounding more than ours and torchvision's
    values = pixel_values(found.rows, config_of(VARIANT).vision)
    torch.testing.assert_close(values, expected["pixel_values"], rtol=0, atol=2e-7)


def test_a_resized_picture_is_close_to_pillows_and_as_large():
    pixels = picture(333, 517, seed=1)
    processor = Qwen2VLImageProcessorPil.from_pretrained(tiny_checkpoint())
    expected = processor(images=[Image.fromarray(pixels.permute(1, 2, 0).numpy())], return_tensors="pt")
    found = image_frames(pixels, config_of(VARIANT).vision, IMAGE_BUDGET).to_patches()
    assert expected["image_grid_thw"].tolist() == [[1, found.grid.height, found.grid.width]]
    # other fixed-point filters: one grey level of 255 on smooth pictures
    values = pixel_values(found.rows, config_of(VARIANT).vision)
    assert (values - expected["pixel_values"]).abs().max() <= 1.01 / 127.5


def test_sizes_equal_those_of_transformers():
    generator = np.random.default_rng(0)
    budget = PixelBudget(65536, 16777216)
    sides = [(int(h), int(w)) for h, w in generator.integers(1, 9000, (2000, 2))]
    sides += [(int(h), int(w)) for h, w in generator.integers(1, 70, (500, 2))]
    for height, width in sides:
        try:
            expected = smart_resize(height, width, 32, budget.min_pixels, budget.max_pixels)
        except ValueError:
            with pytest.raises(ImageShapeError):
                fit_size(height, width, 32, budget)
        else:
            assert fit_size(height, width, 32, budget) == expected, (height, width)


@pytest.mark.parametrize(
    "file",
    [
        {"size": {"shortest_edge": 65536, "longest_edge": 16777216}},
        {"min_pixels": 4096, "max_pixels": 300_000},
        {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "min_pixels": 4096},
        {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "max_pixels": 300_000},
        {"size": {"min_pixels": 1, "max_pixels": 2}, "min_pixels": 4096, "max_pixels": 300_000},
    ],
    ids=str,
)
@pytest.mark.parametrize("call", [{}, {"min_pixels": 200_000}, {"max_pixels": 100_000}, {"max_pixels": 2000}], ids=str)
@pytest.mark.filterwarnings("ignore:Passing `min_pixels` and `max_pixels` to a processor call:FutureWarning")
def test_bounds_of_files_and_calls_are_read_as_transformers_does(file, call):
    """Old style and new; a call's are a job's."""
    vision = config_of(VARIANT).vision
    sides = {"patch_size": vision.patch_size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen2VLImageProcessorPil(**copy.deepcopy(file), **sides)
    budget = PixelBudget.from_json(file | sides, vision, file="f").with_bounds(
        call.get("min_pixels"), call.get("max_pixels")
    )
    for height, width in ((30, 40), (300, 400), (1200, 900)):
        expected = processor(images=[Image.new("RGB", (width, height))], return_tensors="pt", **call)["image_grid_thw"]
        fitted = fit_size(height, width, 32, budget)
        assert [side // 16 for side in fitted] == expected[0, 1:].tolist(), (height, width)


def test_video_sizes_equal_those_of_transformers():
    theirs = _video_smart_resize()
    generator = np.random.default_rng(0)
    budget = PixelBudget(4096, 25165824)
    for frames, height, width in generator.integers((2, 1, 1), (769, 3000, 3000), (2000, 3)).tolist():
        try:
            expected = theirs(frames, height, width, 2, 32, budget.min_pixels, budget.max_pixels)
        except ValueError:
            continue
        assert fit_video_size(frames, height, width, 32, budget) == expected, (frames, height, width)


@pytest.mark.parametrize("file", [{}, {"min_pixels": 4096, "max_pixels": 300_000}], ids=str)
def test_a_video_without_a_size_has_transformers_own(file):
    video_processor = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    expected = video_processor.Qwen3VLVideoProcessor(**file).size
    rules = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    budget = PixelBudget.from_json(file | rules, config_of(VARIANT).vision, file="f", is_video=True)
    assert budget == PixelBudget(expected["shortest_edge"], expected["longest_edge"])


def test_frames_of_a_video_file_are_the_ones_that_transformers_chooses():
    video_processor = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    processor = video_processor.Qwen3VLVideoProcessor()
    generator = np.random.default_rng(0)
    for num_frames, rate, fps in zip(
        generator.integers(1, 20_000, 300), generator.uniform(1, 120, 300), generator.uniform(0.1, 30, 300), strict=True
    ):
        metadata = VideoMetadata(total_num_frames=int(num_frames), fps=float(rate))
        expected = processor.sample_frames(metadata, fps=float(fps)).tolist()
        assert sampled_indices(VideoHeader("h264", 1, 1, int(num_frames), float(rate)), float(fps), 768) == expected


def _video_smart_resize():
    """Call transformers' function; its module cannot be imported without torchvision."""
    path = Path(transformers.__file__).parent / "models/qwen3_vl/video_processing_qwen3_vl.py"
    tree = ast.parse(path.read_text())
    [function] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "smart_resize"]
    scope = {"math": math}
    exec(compile(ast.Module([function], []), str(path), "exec"), scope)
    return scope["smart_resize"]


def test_an_odd_video_repeats_its_last_frame():
    vision = config_of(VARIANT).vision
    frames = [picture(64, 96, seed) for seed in range(3)]
    odd, even = (video_frames(f, len(f), vision, VIDEO_BUDGET).to_patches() for f in (frames, [*frames, frames[-1]]))
    assert odd.grid == even.grid == PatchGrid(2, 4, 6)
    assert torch.equal(odd.rows, even.rows)


def test_a_picture_is_a_video_of_one_frame_shown_twice():
    vision = config_of(VARIANT).vision
    pixels = picture(64, 96, 0)
    image = image_frames(pixels, vision, IMAGE_BUDGET).to_patches()
    video = video_frames([pixels, pixels], 2, vision, VIDEO_BUDGET).to_patches()
    assert torch.equal(pixel_values(image.rows, vision), pixel_values(video.rows, vision))


# --- processor files -------------------------------------------------------------------------------------------------


def saved_by_transformers_5(directory: Path) -> None:
    """Write `processor_config.json` as transformers 5 does; its video processor wants torchvision."""
    image = Qwen2VLImageProcessorPil.from_pretrained(tiny_checkpoint()).to_dict()
    video = json.loads((tiny_checkpoint() / "video_preprocessor_config.json").read_text())
    content = {"processor_class": "Qwen3VLProcessor", "image_processor": image, "video_processor": video}
    (directory / "processor_config.json").write_text(json.dumps(content))


def saved_apart(directory: Path) -> None:
    Qwen2VLImageProcessorPil.from_pretrained(tiny_checkpoint()).save_pretrained(directory)


def both_kinds(directory: Path) -> None:
    saved_by_transformers_5(directory)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 1024, "longest_edge": 2048}).save_pretrained(directory)


@pytest.mark.parametrize("save", [saved_by_transformers_5, saved_apart, both_kinds])
def test_sizes_come_from_the_file_that_transformers_reads(tmp_path, save):
    save(tmp_path)
    image, video = read_pixel_budgets(tmp_path, config_of(VARIANT).vision)
    for found, theirs in (
        (image, Qwen2VLImageProcessorPil.get_image_processor_dict(tmp_path)[0]),
        (video, BaseVideoProcessor.get_video_processor_dict(tmp_path)[0]),
    ):
        assert {"shortest_edge": found.min_pixels, "longest_edge": found.max_pixels} == dict(theirs["size"])
