"""What an artifact directory holds: the weights manifest, its fingerprint and the checks on both. No torch.

    ARTIFACT/
    ├── weights_manifest.json        this file's records
    ├── hf_config.json               the checkpoint's config.json, byte for byte
    ├── embed.safetensors            token embedding
    ├── block-00000.safetensors …    one file per decoder block
    ├── head.safetensors             final norm, and the output head where it is not tied
    ├── vision.safetensors           vision tower and its mergers
    └── tokenizer.json …             side files, copied

The fingerprint is the SHA-256 of the artifact's *content*: configuration, every tensor, every side file. Where
the content came from (shard names, expert layout, hub revision) is recorded but left out of it, so that two
hosts which exported the same weights from differently cut checkpoints may serve together.
"""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError, RandomWeightsError

FORMAT_VERSION = 1
MANIFEST_NAME = "weights_manifest.json"
CONFIG_NAME = "hf_config.json"
PACKED_NAME = "weights.pt"
PACKED_RECORD_NAME = "packed_manifest.json"
EMBED_FILE = "embed.safetensors"
HEAD_FILE = "head.safetensors"
VISION_FILE = "vision.safetensors"

FP8_DTYPE = "float8_e4m3fn"
FP8_BLOCK = 128
"""Rows, and columns, of a matrix in FP8 that share a scale."""
DTYPE_BYTES = {"bfloat16": 2, "float32": 4, FP8_DTYPE: 1}

Dtype = Literal["bfloat16", "float32"]
"""What a model is computed in, and its tensors are stored in but for matrices in FP8."""
StoredDtype = Literal["bfloat16", "float32", "float8_e4m3fn"]
SourceLayout = Literal["plain", "hub", "runtime", "per-expert", "fp8", "fp8-fused", "fp8-per-expert"]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
# One path component: a manifest must not be able to name a file outside its directory.
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=128)]
Count = Annotated[int, msgspec.Meta(ge=0)]


def block_file(block: int) -> str:
    """Name of the file that holds decoder block `block`, counted from 0."""
    return f"block-{block:05d}.safetensors"


def scale_name(name: str) -> str:
    """Return the name of the scales of a matrix in FP8, whose values are codes times scales."""
    return f"{name}_scale_inv"


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the scales of a matrix, or of experts, of this shape.

    >>> scale_shape((8, 1536, 2000))
    (8, 12, 16)
    """
    *experts, num_rows, num_columns = shape
    return (*experts, -(-num_rows // FP8_BLOCK), -(-num_columns // FP8_BLOCK))


class TensorRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor: what it is, where it lies, and (from `source_files` on) where it came from.

    A tied tensor has the file and hash of the tensor it is tied to and no bytes of its own.
    """

    name: str
    file: FileName
    dtype: StoredDtype
    shape: tuple[Annotated[int, msgspec.Meta(gt=0)], ...]
    size_bytes: Count
    sha256: Sha256
    tied_to: str | None
    source_files: tuple[str, ...]
    source_layout: SourceLayout
    transposed: bool


class WeightFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A safetensors file. Its content is hashed tensor by tensor, and its header follows from the records."""

    name: FileName
    size_bytes: Count


class SideFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file copied as it was: tokenizer, chat template, processor and generation configuration."""

    name: FileName
    size_bytes: Count
    sha256: Sha256


class RandomWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Says that no weight is stored: whoever loads a tensor draws it from this seed and the tensor's name.

    Such an artifact is for measuring. Hashes in its manifest are those of how a tensor is drawn, not of its bytes.
    """

    seed: Count


class WeightsManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`weights_manifest.json`. Tensors stand in the order in which their files hold them.

    With `random_weights` there are no weight files, only their names and the sizes that they would have.
    """

    format_version: int
    fingerprint: Sha256
    config_sha256: Sha256
    dtype: Dtype
    num_blocks: Annotated[int, msgspec.Meta(gt=0)]
    source: str | None
    weight_files: tuple[WeightFile, ...]
    side_files: tuple[SideFile, ...]
    tensors: tuple[TensorRecord, ...]
    random_weights: RandomWeights | None = None

    @property
    def is_fp8(self) -> bool:
        """Whether matrices are stored as FP8 codes with scales."""
        return any(record.dtype == FP8_DTYPE for record in self.tensors)

    def listed_files(self) -> list[str]:
        """Return the names of all weight and side files."""
        return [file.name for file in self.weight_files] + [file.name for file in self.side_files]

    def by_name(self) -> dict[str, TensorRecord]:
        """Return the records under their tensors' names."""
        return {record.name: record for record in self.tensors}

    def stored_in(self, file: str) -> tuple[TensorRecord, ...]:
        """Return the records whose bytes lie in `file`, in their order there; aliases are not among them."""
        return tuple(record for record in self.tensors if record.file == file and record.tied_to is None)


class PackedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`packed_manifest.json`, alongside `weights.pt`. Not part of the fingerprint: it holds no new content."""

    name: FileName
    size_bytes: Count
    sha256: Sha256
    fingerprint: Sha256


def fingerprint_of(manifest: WeightsManifest) -> str:
    """Return the SHA-256, in hex, of the manifest's content in canonical form.

    Canonical form: compact JSON, keys sorted, tensors and side files sorted by name.
    """
    content: dict[str, object] = {
        "format_version": manifest.format_version,
        "config_sha256": manifest.config_sha256,
        "dtype": manifest.dtype,
        "num_blocks": manifest.num_blocks,
        "tensors": sorted((t.name, t.file, t.dtype, t.shape, t.sha256, t.tied_to) for t in manifest.tensors),
        "side_files": sorted((file.name, file.sha256) for file in manifest.side_files),
    }
    if manifest.random_weights is not None:  # left out otherwise: artifacts keep the fingerprints that they have
        content["random_weights"] = manifest.random_weights.seed
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def read_manifest(directory: Path) -> WeightsManifest:
    """Read and check `weights_manifest.json`; no weight file is opened.

    Raises:
        ArtifactMissingError: there is no manifest, so this is no (finished) artifact.
        ArtifactCorruptError: the manifest contradicts itself or its own fingerprint.
    """
    path = directory / MANIFEST_NAME
    manifest = decode_manifest(read_artifact_file(path), path)
    check_manifest(manifest, path)
    return manifest


def check_weights_are_stored(manifest: WeightsManifest, directory: Path) -> None:
    """Raise `RandomWeightsError` for an artifact whose weights no file holds."""
    if manifest.random_weights is not None:
        raise RandomWeightsError(
            f"{directory} is for measuring: its weights are drawn at random when they are loaded, and no file holds "
            "them. There is nothing to verify or to export; an artifact of a model comes from "
            "`broker-pipeline export SOURCE TARGET`.",
            field="random_weights",
        )


def decode_manifest(encoded: bytes, path: Path) -> WeightsManifest:
    """Parse a manifest; `path` is for the message."""
    try:
        version = msgspec.json.decode(encoded, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise ArtifactCorruptError(
                f"{path} has format version {version} and this program reads version {FORMAT_VERSION}; "
                "export the checkpoint again with this program",
                field="format_version",
            )
        return msgspec.json.decode(encoded, type=WeightsManifest)
    except msgspec.DecodeError as error:
        raise ArtifactCorruptError(f"{path} is not a weights manifest: {error}", field=MANIFEST_NAME) from error


class _Version(msgspec.Struct):
    format_version: int


def read_artifact_file(path: Path) -> bytes:
    """Read a small file of an artifact, with an error that says what its absence means."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactMissingError(
            f"{path.parent} is not an artifact: it has no {path.name}. "
            "Make one with `broker-pipeline export SOURCE TARGET`.",
            field=path.name,
        ) from error
    except OSError as error:
        raise ArtifactMissingError(f"cannot read {path}: {error.strerror}", field=path.name) from error


def check_manifest(manifest: WeightsManifest, path: Path) -> None:
    """Raise ArtifactCorruptError for the first thing in the manifest that contradicts another."""
    for problem in _contradictions(manifest):
        raise ArtifactCorruptError(f"{path}: {problem}", field=MANIFEST_NAME)
    if fingerprint_of(manifest) != manifest.fingerprint:
        raise ArtifactCorruptError(
            f"{path} was altered: its records do not add up to its fingerprint; export again",
            field="fingerprint",
        )


def _contradictions(manifest: WeightsManifest) -> list[str]:
    records = manifest.by_name()
    files = manifest.listed_files()
    weight_files = {file.name for file in manifest.weight_files}
    found = []
    if len(records) != len(manifest.tensors):
        found.append("a tensor is listed twice")
    if len(set(files)) != len(files) or {MANIFEST_NAME, CONFIG_NAME, PACKED_NAME} & set(files):
        found.append("a file is listed twice")
    for record in manifest.tensors:
        if record.size_bytes != math.prod(record.shape) * DTYPE_BYTES[record.dtype]:
            found.append(f"size of {record.name} does not fit its shape and dtype")
        if record.file not in weight_files:
            found.append(f"{record.name} lies in {record.file}, which is not listed")
        found.extend(_tie_contradictions(record, records))
        found.extend(_scale_contradictions(record, records))
    return found


def _scale_contradictions(record: TensorRecord, records: dict[str, TensorRecord]) -> list[str]:
    if record.dtype != FP8_DTYPE:
        return []
    scale = records.get(scale_name(record.name))
    if scale is None or len(record.shape) < 2 or (scale.dtype, scale.shape) != ("float32", scale_shape(record.shape)):
        return [f"{record.name} holds FP8 codes, and no scales fit them"]
    return []


def _tie_contradictions(record: TensorRecord, records: dict[str, TensorRecord]) -> list[str]:
    if record.tied_to is None:
        return []
    original = records.get(record.tied_to)
    same = original is not None and original.tied_to is None
    if original is None or not same:
        return [f"{record.name} is tied to {record.tied_to}, which is not stored"]
    if (original.file, original.shape, original.sha256) != (record.file, record.shape, record.sha256):
        return [f"{record.name} differs from {record.tied_to}, to which it is tied"]
    return []
