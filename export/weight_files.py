"""Which tensors lie in which file of an artifact. No torch."""

from __future__ import annotations

from broker_pipeline.artifact_manifest import EMBED_FILE, HEAD_FILE, VISION_FILE, block_file
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import (
    EMBED_TOKENS,
    Shapes,
    embedding_shapes,
    head_shapes,
    layer_shapes,
    vision_shapes,
)


def file_shapes(config: ModelConfig) -> dict[str, Shapes]:
    """Return names and shapes of each file's tensors; a tied head is in none."""
    head = {name: shape for name, shape in head_shapes(config).items() if name != EMBED_TOKENS}
    blocks = {block_file(layer): layer_shapes(config, layer) for layer in range(config.text.num_layers)}
    return {VISION_FILE: vision_shapes(config), EMBED_FILE: embedding_shapes(config)} | blocks | {HEAD_FILE: head}
