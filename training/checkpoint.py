"""The captioner as a Hugging Face style directory: configuration, processor settings, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from export.synthetic.generated_files import write_json, write_processor_files, write_text_files
from export.synthetic.shapes import hf_config
from export.synthetic.tiny_tokenizer import special_token_ids

MIN_PIXELS = 65_536
MAX_PIXELS = 81_920


def model_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of config.json in the hub's form. Everything that makes a Qwen3-VL is here, only smaller."""
    config = hf_config("demo", special_tokens=special_token_ids(tokenizer))
    config["text_config"] |= {
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    return config | {"transformers_version": "4.57.0"}


def build_model(tokenizer: Tokenizer, seed: int) -> Qwen3VLForConditionalGeneration:
    """Initialise a model in float32."""
    torch.manual_seed(seed)
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**model_settings(tokenizer))).float()


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
    write_text_files(directory, tokenizer)
    tokenizer.model.save(str(directory))  # vocab.json and merges.txt
    write_json(directory / "generation_config.json", generation)
    write_json(directory / "config.json", model_settings(tokenizer))
    write_processor_files(directory, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    tensors = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
