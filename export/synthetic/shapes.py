"""The sizes of the published models by name, and of small ones: nobody needs a checkpoint to measure or test one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from broker_pipeline.errors import ConfigurationError
from stages.qwen3_vl.config import DENSE_MODEL_TYPE, MOE_MODEL_TYPE, ModelConfig

SpecialTokens = Mapping[str, int]
"""Ids of `image_token_id`, `video_token_id`, `vision_start_token_id`, `vision_end_token_id`, `eos_token_id`."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower; `levels` are the blocks whose output goes to decoder layers."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    levels: tuple[int, ...]
    num_positions: int = 2304


@dataclass(frozen=True, slots=True)
class Shape:
    """A model; without experts it is dense."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    tower: Tower
    is_tied: bool = False
    num_experts: int = 0
    expert_size: int = 0
    num_experts_per_token: int = 8
    head_dim: int = 128
    vocab_size: int = 151_936
    dtype: str = "bfloat16"


_SMALL = Tower(24, 1024, 4096, 16, (5, 11, 17))
_LARGE = Tower(27, 1152, 4304, 16, (8, 16, 24))
_DEMO = Tower(6, 160, 640, 5, (1, 2, 4), num_positions=576)
_TINY = Tower(4, 48, 96, 4, (0, 1, 3), num_positions=64)

SHAPES: Mapping[str, Shape] = {
    "2B": Shape(2048, 6144, 28, 16, 8, _SMALL, is_tied=True),
    "4B": Shape(2560, 9728, 36, 32, 8, _SMALL, is_tied=True),
    "8B": Shape(4096, 12_288, 36, 32, 8, _LARGE),
    "32B": Shape(5120, 25_600, 64, 64, 8, _LARGE),
    "30B-A3B": Shape(2048, 6144, 48, 32, 4, _LARGE, num_experts=128, expert_size=768),
    "235B-A22B": Shape(4096, 12_288, 94, 64, 4, _LARGE, num_experts=128, expert_size=1536),
    "demo": Shape(192, 448, 5, 4, 2, _DEMO, is_tied=True, vocab_size=704),
    "tiny": Shape(64, 160, 6, 4, 2, _TINY, is_tied=True, head_dim=32, vocab_size=512, dtype="float32"),
}
SHAPE_NAMES = tuple(SHAPES)
_SECTIONS = {128: [24, 20, 20], 32: [6, 5, 5]}


def shape_config(name: str, num_layers: int | None = None, special_tokens: SpecialTokens | None = None) -> ModelConfig:
    """Return a shape's configuration; see `hf_config`."""
    return ModelConfig.from_json(hf_config(name, num_layers, special_tokens))


def hf_config(name: str, num_layers: int | None = None, special_tokens: SpecialTokens | None = None) -> dict[str, Any]:
    """Return a shape's `config.json` in the hub's form, with only `num_layers` decoder layers where that is given.

    Without `special_tokens`, the ids are the last ones of the vocabulary.

    Raises:
        ConfigurationError: no shape has this name, or it has fewer layers.
    """
    shape = SHAPES.get(name)
    if shape is None:
        raise ConfigurationError(f"no shape is called {name!r}; there are {', '.join(SHAPE_NAMES)}", field="shape")
    if num_layers is not None and not 1 <= num_layers <= shape.num_layers:
        raise ConfigurationError(f"{name} has 1 to {shape.num_layers} layers to take", field="layers")
    layers = num_layers or shape.num_layers
    return config_json(replace(shape, num_layers=layers), special_tokens or _last_ids(shape.vocab_size))


def config_json(shape: Shape, special_tokens: SpecialTokens) -> dict[str, Any]:
    """Return the `config.json` of a shape in the hub's form."""
    kind = MOE_MODEL_TYPE if shape.num_experts else DENSE_MODEL_TYPE
    tokens = dict(special_tokens)
    eos = tokens.pop("eos_token_id")
    return {
        "architectures": [f"Qwen3VL{'Moe' if shape.num_experts else ''}ForConditionalGeneration"],
        "model_type": kind,
        "tie_word_embeddings": shape.is_tied,
        "text_config": _text(shape, kind) | {"eos_token_id": eos, "bos_token_id": eos},
        "vision_config": _vision(shape, kind),
        **tokens,
    }


def _last_ids(vocab_size: int) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "eos_token_id")
    return {name: vocab_size - 1 - index for index, name in enumerate(names)}


def _text(shape: Shape, kind: str) -> dict[str, Any]:
    text: dict[str, Any] = {
        "model_type": f"{kind}_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": shape.dtype,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": 262_144,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": _SECTIONS[shape.head_dim],
            "rope_type": "default",
        },
        "rope_theta": 5_000_000,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }
    if shape.num_experts:
        text |= {"num_experts": shape.num_experts, "num_experts_per_tok": shape.num_experts_per_token}
        text |= {"moe_intermediate_size": shape.expert_size, "norm_topk_prob": True}
        text |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    return text


def _vision(shape: Shape, kind: str) -> dict[str, Any]:
    tower = shape.tower
    return {
        "model_type": kind,
        "deepstack_visual_indexes": list(tower.levels[: shape.num_layers]),
        "depth": tower.depth,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": tower.hidden_size,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": tower.intermediate_size,
        "num_heads": tower.num_heads,
        "num_position_embeddings": tower.num_positions,
        "out_hidden_size": shape.hidden_size,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
