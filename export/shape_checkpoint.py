"""A checkpoint of random weights in a published shape: `python -m export.shape_checkpoint SHAPE DIRECTORY [LAYERS]`.

Tokenizer, template and processor files are those of the small random checkpoint: what is measured with it does not
depend on which words there are. Weights go out file by file, so that one layer is in memory at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.random_checkpoint import store_experts, write_processor_files, write_text_files
from export.tiny_tokenizer import tiny_tokenizer
from stages.bench.random_weights import draw_weights
from stages.bench.shapes import hf_config
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import Shapes, layer_prefix, model_shapes

_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "eos_token_id": "<|im_end|>",
}
_MAX_PIXELS = 1024 * 1024


def write_shape_checkpoint(directory: Path, shape: str, num_layers: int | None = None) -> Path:
    """Write the checkpoint into `directory` and return it.

    Raises:
        ConfigurationError: no shape has this name, or it has fewer layers.
    """
    tokenizer = tiny_tokenizer()
    vocabulary = tokenizer.get_vocab()
    tokens = {name: vocabulary[token] for name, token in _TOKENS.items()}
    config = hf_config(shape, num_layers, tokens)
    parsed = ModelConfig.from_json(config)
    dtype = torch.float32 if parsed.dtype == "float32" else torch.bfloat16
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weight_map: dict[str, str] = {}
    num_bytes = 0
    groups = list(_groups(parsed))
    for number, shapes in enumerate(groups, start=1):
        weights: dict[str, Tensor] = store_experts(draw_weights(shapes, torch.device("cpu"), dtype, number), "hub")
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(weights, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(weights, name)
        num_bytes += sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    write_text_files(directory)
    write_processor_files(directory, max_pixels=_MAX_PIXELS)
    return directory


def _groups(config: ModelConfig) -> Iterator[Shapes]:
    """Yield what goes into one file: a layer each, and before them everything else."""
    rest = dict(model_shapes(config))
    layers = []
    for layer in range(config.text.num_layers):
        own = {name: rest.pop(name) for name in list(rest) if name.startswith(layer_prefix(layer))}
        layers.append(own)
    yield rest
    yield from layers


def main(arguments: Sequence[str]) -> None:
    """Write the checkpoint that the command line names."""
    shape, directory = arguments[0], Path(arguments[1])
    write_shape_checkpoint(directory, shape, int(arguments[2]) if len(arguments) > 2 else None)


if __name__ == "__main__":
    main(sys.argv[1:])
