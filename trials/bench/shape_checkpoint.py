"""A checkpoint of random weights in a published shape, stored as the hub has it: for what reads real files.

    python -m trials.bench.shape_checkpoint SHAPE DIRECTORY [LAYERS] [VOCABULARY]

Tensors are written as they are drawn, experts one by one. Tokenizer, template and processor files are those of
`shape_artifact`; a vocabulary that is given is as large, in place of the shape's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from broker_pipeline.artifact_files.safetensors_header import StoredTensor, header_bytes
from broker_pipeline.errors import PipelineError
from export.safetensors_file import write_file
from export.source.checkpoint import CONFIG_FILE
from export.source.weight_listing import SINGLE_FILE
from export.synthetic.generated_files import write_json, write_processor_files, write_text_files
from export.synthetic.random_checkpoint import draw_tensor
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import Shapes, model_shapes
from trials.bench.shape_artifact import tokenized_config

_MAX_PIXELS = 1024 * 1024


def write_shape_checkpoint(
    directory: Path, shape: str, num_layers: int | None = None, vocab_size: int | None = None
) -> Path:
    """Write the checkpoint into `directory`, in bfloat16, and return it. The same arguments give the same bytes.

    Raises:
        ConfigurationError: no shape has this name, or it has fewer layers.
    """
    config = tokenized_config(shape, num_layers)
    config["text_config"]["dtype"] = "bfloat16"
    if vocab_size is not None:
        config["text_config"]["vocab_size"] = vocab_size
    parsed = ModelConfig.from_json(config)
    directory.mkdir(parents=True)
    write_text_files(directory, vocab_size=parsed.text.vocab_size)
    write_processor_files(directory, max_pixels=_MAX_PIXELS)
    write_json(directory / CONFIG_FILE, config)
    _write_weights(directory / SINGLE_FILE, model_shapes(parsed))
    return directory


def _write_weights(path: Path, shapes: Shapes) -> None:
    generator = torch.Generator().manual_seed(0)
    stored = [StoredTensor(name, "bfloat16", _hub_shape(name, shape)) for name, shape in shapes.items()]
    drawn = (_draw(name, shape, generator) for name, shape in shapes.items())
    write_file(path, zip(stored, drawn, strict=True), header_bytes(stored))


def _hub_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[1]) if ".mlp.experts." in name else shape


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
    if ".mlp.experts." not in name:
        yield draw_tensor(name, shape, generator).to(torch.bfloat16)
        return
    for _ in range(shape[0]):
        yield draw_tensor(name, (1, *shape[1:]), generator).to(torch.bfloat16).transpose(1, 2).contiguous()


def main(shape: str, directory: str, num_layers: str | None = None, vocab_size: str | None = None) -> None:
    """Write the checkpoint that the command line names; a known error ends it with a sentence."""
    try:
        layers, words = (int(number) if number else None for number in (num_layers, vocab_size))
        write_shape_checkpoint(Path(directory), shape, layers, words)
    except PipelineError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
