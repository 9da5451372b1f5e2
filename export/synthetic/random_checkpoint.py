"""A small checkpoint of random weights, shaped like the hub's: for tests, and for a demo without a trained model.

What it says is noise, but noise that depends on the picture: weights are scaled so that signals keep their size from
layer to layer, and so that attention and the visual rows move the output.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.synthetic.generated_files import write_json, write_processor_files, write_text_files
from export.synthetic.shapes import SHAPES, config_json
from export.synthetic.tiny_tokenizer import special_token_ids, tiny_tokenizer
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import Shapes, model_shapes

_VOCAB_SIZE = 384  # the tokenizer's 378 ids and some unused ones, as the real models have


def write_random_checkpoint(
    directory: Path,
    *,
    moe: bool = False,
    tied: bool = True,
    num_layers: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write config, weights, tokenizer, chat template and processor files into `directory` and return it.

    The same arguments give the same bytes. Experts of a MoE model are stored as transformers 5 does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    hf_config = random_hf_config(moe=moe, tied=tied, num_layers=num_layers, dtype=dtype)
    write_json(directory / "config.json", hf_config)
    weights = random_weights(ModelConfig.from_json(hf_config), seed=seed, dtype=dtype)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    write_text_files(directory)
    write_processor_files(directory)
    return directory


def random_hf_config(*, moe: bool, tied: bool, num_layers: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return a `config.json` in the hub's form, with the tokenizer's ids."""
    tokenizer = tiny_tokenizer()
    shape = replace(
        SHAPES["tiny"],
        num_layers=num_layers,
        is_tied=tied,
        vocab_size=_VOCAB_SIZE,
        dtype=str(dtype).removeprefix("torch."),
    )
    if moe:  # 2I = 80 and I = 40 differ from H = 64: otherwise nobody could tell the two layouts apart
        shape = replace(shape, num_experts=8, num_experts_per_token=3, expert_size=40)
    config = config_json(shape, special_token_ids(tokenizer))
    config["text_config"] |= {"bos_token_id": tokenizer.token_to_id("<|endoftext|>"), "max_position_embeddings": 4096}
    return config


def random_weights(config: ModelConfig, *, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Draw every tensor of the model, in the runtime layout; in fp32, so that both dtypes hold the same model."""
    shapes: Shapes = model_shapes(config)
    generator = torch.Generator().manual_seed(seed)
    return {name: draw_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()}


def draw_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw one tensor, or an expert `[1, out, in]` of one, in fp32: signals keep their size, no norm is plain."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return noise * 0.1
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 1.6 + 0.2 * noise  # attention that prefers some tokens to others
    if name.endswith("language_model.norm.weight"):
        return 0.4 + 0.05 * noise  # logits of a few units: sampling has something to choose from
    if len(shape) == 1:
        return 1.0 + 0.1 * noise
    if name.endswith(("embed_tokens.weight", "pos_embed.weight")):
        return noise * 0.5
    fan_in = math.prod(shape[1:]) if "experts." not in name else shape[2]
    return noise / math.sqrt(fan_in)
