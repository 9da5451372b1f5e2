"""Everything that an export will do, decided from headers before a single value is read."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from broker_pipeline.artifact_files.safetensors_header import StoredTensor, file_size_bytes
from broker_pipeline.artifact_manifest import Dtype
from broker_pipeline.errors import CheckpointError
from export.fp8 import Quantisation, in_fp8
from export.layout import ExpertLayout, LayoutResolver, LayoutRules, PlannedTensor
from export.source.checkpoint import Checkpoint
from export.weight_files import file_shapes
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import EMBED_TOKENS, LM_HEAD, embedding_shapes

FP8_BLOCK = (128, 128)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A weight file of the artifact, and how its tensors are made."""

    name: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors as the file holds them, in order."""
        return tuple(StoredTensor(tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return file_size_bytes(self.stored)

    @property
    def source_files(self) -> set[str]:
        """Files of the checkpoint that it is made from."""
        return {file for tensor in self.tensors for file in tensor.source_files}


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The artifact to be. A tied head is an alias of the embedding; some checkpoints store it again (`head_copy`).

    `buffers` are tensors of the checkpoint that are left out: they follow from the configuration.
    """

    dtype: Dtype
    num_blocks: int
    files: tuple[PlannedFile, ...]
    has_tied_head: bool
    head_copy: PlannedTensor | None
    buffers: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size_bytes for file in self.files)


class _SourceQuantisation(msgspec.Struct):
    quant_method: str
    weight_block_size: tuple[int, int] | None = None


class _Quantised(msgspec.Struct):
    quantization_config: _SourceQuantisation | None = None


def plan_export(
    checkpoint: Checkpoint, *, dtype: Dtype | None, expert_layout: ExpertLayout, quantize: Quantisation | None = None
) -> ExportPlan:
    """Decide which file holds which tensor, made how. `dtype` None keeps the checkpoint's.

    With `quantize` the decoder's matrices are stored in FP8, all else in `dtype`.

    Raises:
        ModelConfigError: the configuration is not of a model of this family.
        CheckpointError: tensors are missing, left over, or of a wrong shape or dtype; all are listed. Or the values
            are in float16, and `dtype` does not say what becomes of them.
        AmbiguousLayoutError: shapes do not tell how the experts are stored.
    """
    config = ModelConfig.from_json(checkpoint.config_json)
    stored_dtype = dtype or _own_dtype(config)
    rules = LayoutRules(stored_dtype, dtype is not None, expert_layout, fp8_block(checkpoint.config_json))
    resolver = LayoutResolver(checkpoint.tensors, rules)
    files = tuple(PlannedFile(name, resolver.resolve(shapes)) for name, shapes in file_shapes(config).items())
    is_tied = config.tie_word_embeddings
    head_copy = _head_copy(checkpoint, config, resolver) if is_tied else None
    buffers = resolver.finish()
    if quantize is not None:
        files = tuple(PlannedFile(file.name, in_fp8(file.tensors)) for file in files)
    return ExportPlan(stored_dtype, config.text.num_layers, files, is_tied, head_copy, buffers)


def _own_dtype(config: ModelConfig) -> Dtype:
    if config.dtype == "float16":
        raise CheckpointError(
            "config.json says float16, whose range the activations of the vision tower exceed: say what it becomes, "
            "--dtype bfloat16 (usual; drops 3 bits of each value) or --dtype float32 (keeps all, twice the size)",
            field="dtype",
        )
    return "float32" if config.dtype == "float32" else "bfloat16"


def fp8_block(config_json: bytes) -> tuple[int, int]:
    """Return rows and columns of the blocks that share an FP8 scale.

    Raises:
        CheckpointError: the checkpoint is quantised in another way than by FP8 blocks.
    """
    try:
        quantisation = msgspec.json.decode(config_json, type=_Quantised).quantization_config
    except msgspec.DecodeError as error:
        raise CheckpointError(f"config.json: {error}", field="quantization_config") from error
    if quantisation is None:
        return FP8_BLOCK
    if quantisation.quant_method != "fp8":
        raise CheckpointError(
            f"the checkpoint is quantised by {quantisation.quant_method!r}; only bfloat16, float32 and FP8 in blocks "
            "can be exported. Use the unquantised checkpoint.",
            field="quantization_config.quant_method",
        )
    rows, columns = quantisation.weight_block_size or FP8_BLOCK
    if rows < 1 or columns < 1:
        raise CheckpointError("config.json: FP8 blocks have no size", field="quantization_config.weight_block_size")
    return rows, columns


def _head_copy(checkpoint: Checkpoint, config: ModelConfig, resolver: LayoutResolver) -> PlannedTensor | None:
    if LM_HEAD not in checkpoint.tensors:
        return None
    shape = embedding_shapes(config)[EMBED_TOKENS]
    return next(iter(resolver.resolve({LM_HEAD: shape})), None)
