"""Names and shapes of every tensor of a checkpoint, in the runtime layout.

Names are the hub's (Qwen/Qwen3-VL-*). Matrices are `[out, in]`. Experts are `[E, 2I, H]` (gate rows first, then up
rows) and `[E, H, I]`: the hub stores them transposed, the exporter turns them.
"""

from __future__ import annotations

import math

from broker_pipeline.artifact_manifest import scale_name, scale_shape
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.vision_config import VisionConfig

Shapes = dict[str, tuple[int, ...]]

TEXT_PREFIX = "model.language_model."
VISION_PREFIX = "model.visual."
EMBED_TOKENS = TEXT_PREFIX + "embed_tokens.weight"
FINAL_NORM = TEXT_PREFIX + "norm.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(layer: int) -> str:
    """Return the start of the names of decoder layer `layer`."""
    return f"{TEXT_PREFIX}layers.{layer}."


def layer_shapes(config: ModelConfig, layer: int) -> Shapes:
    """Return the tensors of one decoder layer."""
    text = config.text
    q_rows, kv_rows = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    shapes: Shapes = {
        "input_layernorm.weight": (text.hidden_size,),
        "post_attention_layernorm.weight": (text.hidden_size,),
        "self_attn.q_proj.weight": (q_rows, text.hidden_size),
        "self_attn.k_proj.weight": (kv_rows, text.hidden_size),
        "self_attn.v_proj.weight": (kv_rows, text.hidden_size),
        "self_attn.o_proj.weight": (text.hidden_size, q_rows),
        "self_attn.q_norm.weight": (text.head_dim,),
        "self_attn.k_norm.weight": (text.head_dim,),
    }
    shapes |= _expert_shapes(config) if text.layer_is_sparse(layer) else _mlp_shapes(config)
    return {layer_prefix(layer) + name: shape for name, shape in shapes.items()}


def _mlp_shapes(config: ModelConfig) -> Shapes:
    hidden, inner = config.text.hidden_size, config.text.intermediate_size
    return {
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def _expert_shapes(config: ModelConfig) -> Shapes:
    text = config.text
    return {
        "mlp.gate.weight": (text.num_experts, text.hidden_size),
        "mlp.experts.gate_up_proj": (text.num_experts, 2 * text.moe_intermediate_size, text.hidden_size),
        "mlp.experts.down_proj": (text.num_experts, text.hidden_size, text.moe_intermediate_size),
    }


def embedding_shapes(config: ModelConfig) -> Shapes:
    """Return what the first stage needs alongside its layers."""
    return {EMBED_TOKENS: (config.text.vocab_size, config.text.hidden_size)}


def head_shapes(config: ModelConfig) -> Shapes:
    """Return what the last stage needs alongside its layers; a tied head is the embedding matrix."""
    head = EMBED_TOKENS if config.tie_word_embeddings else LM_HEAD
    return {
        FINAL_NORM: (config.text.hidden_size,),
        head: (config.text.vocab_size, config.text.hidden_size),
    }


def stage_shapes(config: ModelConfig, start: int, stop: int) -> Shapes:
    """Return the tensors of the stage that owns decoder layers `[start, stop)`."""
    shapes: Shapes = embedding_shapes(config) if start == 0 else {}
    for layer in range(start, stop):
        shapes |= layer_shapes(config, layer)
    if stop == config.text.num_layers:
        shapes |= head_shapes(config)
    return shapes


def vision_shapes(config: ModelConfig) -> Shapes:
    """Return the tensors of the vision tower with its mergers."""
    vision = config.vision
    width = vision.hidden_size
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    shapes: Shapes = {
        "patch_embed.proj.weight": (width, *patch),
        "patch_embed.proj.bias": (width,),
        "pos_embed.weight": (vision.num_position_embeddings, width),
    }
    for block in range(vision.depth):
        shapes |= _prefixed(f"blocks.{block}.", _vision_block_shapes(vision))
    shapes |= _prefixed("merger.", _merger_shapes(vision, norm_width=width))
    for level in range(vision.num_deepstack_levels):
        prefix = f"deepstack_merger_list.{level}."
        shapes |= _prefixed(prefix, _merger_shapes(vision, norm_width=vision.merged_size))
    return _prefixed(VISION_PREFIX, shapes)


def num_values(shapes: Shapes) -> int:
    """Return how many values tensors of these shapes have together."""
    return sum(math.prod(shape) for shape in shapes.values())


def model_shapes(config: ModelConfig) -> Shapes:
    """Return every tensor of the model, the vision tower included."""
    return vision_shapes(config) | stage_shapes(config, 0, config.text.num_layers)


def is_fp8_matrix(name: str) -> bool:
    """Say whether FP8 may hold this tensor: a decoder's matrix, but no embedding, head, norm, router or the tower.

    >>> is_fp8_matrix("model.language_model.layers.3.mlp.experts.down_proj")
    True
    >>> is_fp8_matrix("model.language_model.layers.3.mlp.gate.weight")
    False
    """
    return name.startswith(f"{TEXT_PREFIX}layers.") and name.endswith(("_proj.weight", "_proj"))


def with_scales(shapes: Shapes) -> Shapes:
    """Return the tensors as FP8 holds them: each matrix of the decoder is followed by its scales."""
    stored: Shapes = {}
    for name, shape in shapes.items():
        stored[name] = shape
        if is_fp8_matrix(name):
            stored[scale_name(name)] = scale_shape(shape)
    return stored


def _vision_block_shapes(vision: VisionConfig) -> Shapes:
    width, inner = vision.hidden_size, vision.intermediate_size
    return (
        _linear("attn.qkv", 3 * width, width)
        | _linear("attn.proj", width, width)
        | _linear("mlp.linear_fc1", inner, width)
        | _linear("mlp.linear_fc2", width, inner)
        | {f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    )


def _merger_shapes(vision: VisionConfig, *, norm_width: int) -> Shapes:
    return (
        {f"norm.{part}": (norm_width,) for part in ("weight", "bias")}
        | _linear("linear_fc1", vision.merged_size, vision.merged_size)
        | _linear("linear_fc2", vision.out_hidden_size, vision.merged_size)
    )


def _linear(name: str, num_out: int, num_in: int) -> Shapes:
    return {f"{name}.weight": (num_out, num_in), f"{name}.bias": (num_out,)}


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}
