"""A small checkpoint of random weights, shaped like the hub's: for tests, and for a demo without a trained model.

What it says is noise, but noise that depends on the picture: weights are scaled so that signals keep their size from
layer to layer, and so that attention and the visual rows move the output.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.synthetic.generated_files import write_json, write_processor_files, write_text_files
from export.synthetic.tiny_tokenizer import tiny_tokenizer
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
    model_type = "qwen3_vl_moe" if moe else "qwen3_vl"
    architecture = "Qwen3VLMoeForConditionalGeneration" if moe else "Qwen3VLForConditionalGeneration"
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "tie_word_embeddings": tied,
        "text_config": _text_config(model_type, num_layers, dtype, moe=moe),
        "vision_config": _vision_config(model_type),
    }


def _text_config(model_type: str, num_layers: int, dtype: torch.dtype, *, moe: bool) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    config: dict[str, Any] = {
        "model_type": f"{model_type}_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "dtype": str(dtype).removeprefix("torch."),
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 160,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        "rope_theta": 5_000_000,
        "use_cache": True,
        "vocab_size": _VOCAB_SIZE,
    }
    if moe:  # 2I = 80 and I = 40 differ from H = 64: otherwise nobody could tell the two layouts apart
        config |= {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
        config |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return config


def _vision_config(model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "deepstack_visual_indexes": [0, 1, 3],
        "depth": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 48,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "num_heads": 4,
        "num_position_embeddings": 64,
        "out_hidden_size": 64,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


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
