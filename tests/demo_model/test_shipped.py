"""The shipped checkpoint: small, complete, loadable by transformers, and right about the shipped scenes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jinja2
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from export.synthetic.tiny_tokenizer import ADDED_TOKENS, SPECIAL_TOKENS
from training.evaluate import Captioner
from training.prompts import DEFAULT_PROMPT, HELD_OUT_PROMPTS

_PACKAGE = Path(__file__).parents[2] / "broker_pipeline"
_MODEL = _PACKAGE / "demo_model"
_SCENES = _PACKAGE / "demo_scenes"


@cache
def _captioner() -> Captioner:
    return Captioner(_MODEL, "cpu", torch.bfloat16)


def test_model_and_scenes_stay_within_sixteen_megabytes() -> None:
    files = [path for folder in (_MODEL, _SCENES) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000


def test_every_tensor_is_bfloat16_and_the_head_is_tied() -> None:
    with safe_open(_MODEL / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
        assert {tensors.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert "lm_head.weight" not in names
    assert "model.language_model.embed_tokens.weight" in names
    assert "model.visual.deepstack_merger_list.2.linear_fc2.weight" in names


def test_the_architecture_is_the_real_one() -> None:
    config = json.loads((_MODEL / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    assert text["head_dim"] == 128
    assert text["rope_scaling"] == {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    assert text["num_hidden_layers"] >= 4
    assert len(vision["deepstack_visual_indexes"]) == 3
    assert (vision["patch_size"], vision["spatial_merge_size"], vision["temporal_patch_size"]) == (16, 2, 2)


def test_special_tokens_stand_last_in_order_and_in_the_config() -> None:
    tokenizer = _captioner().tokenizer
    ids = tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, *ADDED_TOKENS])
    assert ids == list(range(len(tokenizer) - 26, len(tokenizer)))
    config = json.loads((_MODEL / "config.json").read_text())
    for name in ("image", "video", "vision_start", "vision_end"):
        token = f"<|{name}_pad|>" if name in {"image", "video"} else f"<|{name}|>"
        assert config[f"{name}_token_id"] == tokenizer.convert_tokens_to_ids(token)
    assert config["text_config"]["vocab_size"] == len(tokenizer)


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = _captioner().tokenizer
    for text in ("Größe 3² — 你好 🦊\n\ttab", "don't  stop", "<think>\n</think>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_plain_jinja_renders_what_transformers_renders() -> None:
    messages = [
        {"role": "system", "content": "You write captions."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": DEFAULT_PROMPT}]},
        {"role": "assistant", "content": "A cat on a red background."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And "}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
    ]
    template = jinja2.Environment(autoescape=False).from_string((_MODEL / "chat_template.jinja").read_text())
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == _captioner().tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nYou write captions.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe this image.<|im_end|>\n"
        "<|im_start|>assistant\nA cat on a red background.<|im_end|>\n"
        "<|im_start|>user\nAnd <|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("prompt", [DEFAULT_PROMPT, HELD_OUT_PROMPTS[0]])
def test_greedy_captions_of_the_shipped_scenes_are_right(prompt: str) -> None:
    entries = json.loads((_SCENES / "scenes.json").read_text())
    said = []
    for entry in entries:
        with Image.open(_SCENES / entry["name"]) as picture:
            said += _captioner().captions([picture], prompt)
    assert said == [entry["caption"] for entry in entries]


def test_without_deepstack_the_captions_go_wrong() -> None:
    captioner = Captioner(_MODEL, "cpu", torch.bfloat16)
    captioner.switch_deepstack_off()
    entries = json.loads((_SCENES / "scenes.json").read_text())
    right = 0
    for entry in entries[:4]:
        with Image.open(_SCENES / entry["name"]) as picture:
            right += captioner.captions([picture]) == [entry["caption"]]
    assert right == 0
