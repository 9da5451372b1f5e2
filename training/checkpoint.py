"""The captioner as a Hugging Face style directory: configuration, processor settings, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from training.tokenizer import save_tokenizer

MIN_PIXELS = 65_536
MAX_PIXELS = 81_920


def model_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of config.json in the hub's form. Everything that makes a Qwen3-VL is here, only smaller."""
    token = tokenizer.token_to_id
    hidden = 192
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": token("<|image_pad|>"),
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": token("<|endoftext|>"),
            "dtype": "bfloat16",
            "eos_token_id": token("<|im_end|>"),
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": 448,
            "max_position_embeddings": 4096,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 5,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0",
        "video_token_id": token("<|video_pad|>"),
        "vision_config": {
            "deepstack_visual_indexes": [1, 2, 4],
            "depth": 6,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 160,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 640,
            "model_type": "qwen3_vl",
            "num_heads": 5,
            "num_position_embeddings": 576,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": token("<|vision_end|>"),
        "vision_start_token_id": token("<|vision_start|>"),
    }


def build_model(tokenizer: Tokenizer, seed: int) -> Qwen3VLForConditionalGeneration:
    """Initialise a model in float32."""
    torch.manual_seed(seed)
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**model_settings(tokenizer))).float()


def _processor_settings(smallest: int, largest: int) -> dict[str, Any]:
    return {
        "size": {"longest_edge": largest, "shortest_edge": smallest},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }


def save_checkpoint(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the whole directory; weights in bfloat16 under the hub's tensor names, the tied head left out."""
    directory.mkdir(parents=True, exist_ok=True)
    token = tokenizer.token_to_id
    generation = {
        "bos_token_id": token("<|endoftext|>"),
        "do_sample": False,
        "eos_token_id": [token("<|im_end|>"), token("<|endoftext|>")],
        "max_new_tokens": 48,
        "pad_token_id": token("<|endoftext|>"),
        "transformers_version": "4.57.0",
    }
    image = _processor_settings(MIN_PIXELS, MAX_PIXELS) | {"image_processor_type": "Qwen2VLImageProcessorFast"}
    video = _processor_settings(4096, 8 * MAX_PIXELS) | {"video_processor_type": "Qwen3VLVideoProcessor"}
    for name, content in (
        ("config.json", model_settings(tokenizer)),
        ("generation_config.json", generation),
        ("preprocessor_config.json", image),
        ("video_preprocessor_config.json", video),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    save_tokenizer(tokenizer, directory)
    tensors = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
