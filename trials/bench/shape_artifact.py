"""An artifact of random weights in a published shape, for measuring.

    python -m trials.bench.shape_artifact SHAPE DIRECTORY [LAYERS]

No weight is stored: whoever loads a tensor draws it (see `stages.random_weights`), so that the artifact of a model of
any size takes a few megabytes and is made without torch in a second. Tokenizer, template and processor files are those
of the small random checkpoint; the vocabulary is filled up to the shape's, so that every sampled id decodes to some
text, as it would with the real one.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson

from broker_pipeline.artifact_manifest import (
    CONFIG_NAME,
    DTYPE_BYTES,
    FORMAT_VERSION,
    MANIFEST_NAME,
    Dtype,
    RandomWeights,
    SideFile,
    StoredDtype,
    TensorRecord,
    WeightFile,
    WeightsManifest,
    fingerprint_of,
    scale_name,
)
from broker_pipeline.errors import PipelineError
from export.synthetic.generated_files import write_json, write_processor_files, write_text_files
from export.synthetic.shapes import hf_config
from export.synthetic.tiny_tokenizer import special_token_ids, tiny_tokenizer
from export.weight_files import file_shapes
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import EMBED_TOKENS, LM_HEAD, Shapes, with_scales

_MAX_PIXELS = 1024 * 1024


def write_shape_artifact(
    directory: Path, shape: str, num_layers: int | None = None, seed: int = 0, *, in_fp8: bool = False
) -> Path:
    """Write the artifact into `directory` and return it. The same arguments give the same fingerprint.

    With `in_fp8` the decoder's matrices are drawn as codes and scales.

    Raises:
        ConfigurationError: no shape has this name, or it has fewer layers.
    """
    config = tokenized_config(shape, num_layers)
    parsed = ModelConfig.from_json(config)
    directory.mkdir(parents=True, exist_ok=True)
    write_text_files(directory, vocab_size=parsed.text.vocab_size)
    write_processor_files(directory, max_pixels=_MAX_PIXELS)
    side_files = tuple(_side_file(path) for path in sorted(directory.iterdir()))
    write_json(directory / CONFIG_NAME, config)
    shapes = {file: with_scales(own) if in_fp8 else own for file, own in file_shapes(parsed).items()}
    manifest = _manifest(parsed, shapes, (directory / CONFIG_NAME).read_bytes(), side_files, seed)
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (directory / MANIFEST_NAME).write_bytes(encoded + b"\n")
    return directory


def tokenized_config(shape: str, num_layers: int | None = None) -> dict[str, Any]:
    """Return a shape's `config.json` with the ids of the tokenizer that is written with it; errors of `hf_config`."""
    return hf_config(shape, num_layers, special_token_ids(tiny_tokenizer()))


def _side_file(path: Path) -> SideFile:
    content = path.read_bytes()
    return SideFile(path.name, len(content), hashlib.sha256(content).hexdigest())


def _manifest(
    config: ModelConfig,
    shapes: Mapping[str, Shapes],
    config_json: bytes,
    side_files: tuple[SideFile, ...],
    seed: int,
) -> WeightsManifest:
    dtype: Dtype = "float32" if config.dtype == "float32" else "bfloat16"
    files = {file: _records(file, own, dtype, seed) for file, own in shapes.items()}
    tensors = [record for records in files.values() for record in records]
    if config.tie_word_embeddings:
        embedding = next(record for record in tensors if record.name == EMBED_TOKENS)
        tensors.append(msgspec.structs.replace(embedding, name=LM_HEAD, tied_to=EMBED_TOKENS))
    manifest = WeightsManifest(
        format_version=FORMAT_VERSION,
        fingerprint="0" * 64,
        config_sha256=hashlib.sha256(config_json).hexdigest(),
        dtype=dtype,
        num_blocks=config.text.num_layers,
        source=None,
        weight_files=tuple(WeightFile(file, sum(r.size_bytes for r in records)) for file, records in files.items()),
        side_files=side_files,
        tensors=tuple(tensors),
        random_weights=RandomWeights(seed),
    )
    return msgspec.structs.replace(manifest, fingerprint=fingerprint_of(manifest))


def _records(file: str, shapes: Shapes, dtype: Dtype, seed: int) -> list[TensorRecord]:
    scales = {scale_name(name) for name in shapes} & shapes.keys()

    def record(name: str, shape: tuple[int, ...]) -> TensorRecord:
        codes: StoredDtype = "float8_e4m3fn" if scale_name(name) in scales else dtype
        stored: StoredDtype = "float32" if name in scales else codes
        return TensorRecord(
            name=name,
            file=file,
            dtype=stored,
            shape=shape,
            size_bytes=math.prod(shape) * DTYPE_BYTES[stored],
            sha256=hashlib.sha256(orjson.dumps([seed, name, shape, stored])).hexdigest(),
            tied_to=None,
            source_files=(),
            source_layout="plain",
            transposed=False,
        )

    return [record(name, shape) for name, shape in shapes.items()]


def main(shape: str, directory: str, num_layers: str | None = None) -> None:
    """Write the artifact that the command line names; a known error ends it with a sentence."""
    try:
        write_shape_artifact(Path(directory), shape, int(num_layers) if num_layers else None)
    except PipelineError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
