"""Which tensors of the model FP8 may hold: the decoder's matrices, without embedding, head, norms, router and tower."""

from __future__ import annotations

from broker_pipeline.fp8_format import scale_name, scale_shape
from stages.qwen3_vl.tensors import TEXT_PREFIX, Shapes

_LAYERS = f"{TEXT_PREFIX}layers."


def is_fp8_matrix(name: str) -> bool:
    """Say whether FP8 may hold this tensor.

    >>> is_fp8_matrix("model.language_model.layers.3.mlp.experts.down_proj")
    True
    >>> is_fp8_matrix("model.language_model.layers.3.mlp.gate.weight")
    False
    """
    return name.startswith(_LAYERS) and name.endswith(("_proj.weight", "_proj"))


def with_scales(shapes: Shapes) -> Shapes:
    """Return the tensors as FP8 holds them: each matrix of the decoder is followed by its scales."""
    stored: Shapes = {}
    for name, shape in shapes.items():
        stored[name] = shape
        if is_fp8_matrix(name):
            stored[scale_name(name)] = scale_shape(shape)
    return stored
