"""The few facts about a model that schedule and validate work, read from an artifact without torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from broker_pipeline.artifact_manifest import (
    CONFIG_NAME,
    Dtype,
    WeightsManifest,
    read_artifact_file,
    read_manifest,
)
from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError
from broker_pipeline.messages.sampling import MinP, NgramSize, OutputPenalty, RepetitionPenalty, Temperature, TopK, TopP

GENERATION_CONFIG_NAME = "generation_config.json"
# What tokenising, rendering prompts and preparing pictures reads; copied by an export as it is, where it is there.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
_PUBLISHED_PICTURE_PIXELS = 2**24

S = TypeVar("S", bound=msgspec.Struct)

# These mirror files that other programs write, so unknown keys are let through.


class _TextSection(msgspec.Struct):
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    num_experts_per_tok: int = 0
    eos_token_id: int | list[int] | None = None


class _VisionSection(msgspec.Struct):
    deepstack_visual_indexes: list[int]


class _Config(msgspec.Struct):
    text_config: _TextSection
    vision_config: _VisionSection
    model_type: str
    image_token_id: int
    video_token_id: int
    eos_token_id: int | list[int] | None = None


class _Size(msgspec.Struct):
    longest_edge: int | None = None


class _Processor(msgspec.Struct):
    size: _Size | None = None
    max_pixels: int | None = None
    image_processor: "_Processor | None" = None


class GenerationDefaults(msgspec.Struct, frozen=True):
    """Sampling values that the checkpoint's authors recommend; None where they say nothing."""

    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: OutputPenalty | None = None
    frequency_penalty: OutputPenalty | None = None
    no_repeat_ngram_size: NgramSize | None = None
    eos_token_id: int | list[int] | None = None
    max_new_tokens: Annotated[int, Meta(ge=1)] | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the conductor needs to know of a model. Sizes are counts of values, `dtype` is the artifact's."""

    name: str
    """The hub's repository, or the artifact's directory where it came from elsewhere."""
    fingerprint: str
    model_type: str
    num_layers: int
    hidden_size: int
    num_kv_heads: int
    head_dim: int
    num_deepstack_levels: int
    num_experts_per_token: int
    """0 for a dense model."""
    vocab_size: int
    max_position_embeddings: int
    dtype: Dtype
    image_token_id: int
    video_token_id: int
    eos_token_ids: tuple[int, ...]
    generation: GenerationDefaults


def read_model_facts(directory: Path) -> ModelFacts:
    """Read an artifact's facts; no weight file is opened or even needed.

    Raises:
        ArtifactMissingError: the directory is no artifact.
        ArtifactCorruptError: its configuration or manifest was altered.
    """
    manifest = read_manifest(directory)
    config = _decode(read_config_bytes(directory, manifest), _Config, directory / CONFIG_NAME)
    text = config.text_config
    if text.num_hidden_layers != manifest.num_blocks:
        raise ArtifactCorruptError(f"{directory}: configuration and manifest differ in the number of blocks")
    generation = _read_generation(directory, manifest)
    return ModelFacts(
        name=(manifest.source or directory.absolute().name).partition("@")[0],
        fingerprint=manifest.fingerprint,
        model_type=config.model_type,
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        num_deepstack_levels=len(config.vision_config.deepstack_visual_indexes),
        num_experts_per_token=text.num_experts_per_tok,
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        dtype=manifest.dtype,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        eos_token_ids=_first_ids(generation.eos_token_id, text.eos_token_id, config.eos_token_id),
        generation=generation,
    )


def read_config_bytes(directory: Path, manifest: WeightsManifest) -> bytes:
    """Return `hf_config.json`'s bytes, checked against the manifest's hash."""
    content = read_artifact_file(directory / CONFIG_NAME)
    if hashlib.sha256(content).hexdigest() != manifest.config_sha256:
        raise ArtifactCorruptError(
            f"{directory / CONFIG_NAME} was altered since the export; export again", field=CONFIG_NAME
        )
    return content


def check_side_files(directory: Path, manifest: WeightsManifest) -> None:
    """Check every byte that, besides configuration and weights, decides what prompts and answers are.

    Raises:
        ArtifactMissingError: a side file is not here.
        ArtifactCorruptError: one is not what the export wrote, or would be read and is no part of the artifact.
    """
    for file in manifest.side_files:
        path = directory / file.name
        if not path.is_file():
            raise ArtifactMissingError(f"{directory} lacks {file.name}; copy it again", field=file.name)
        if hashlib.sha256(read_artifact_file(path)).hexdigest() != file.sha256:
            raise ArtifactCorruptError(
                f"{path} was altered since the export; copy it again, or export again", field=file.name
            )
    for name in set(SIDE_FILES).difference(manifest.listed_files()):
        if (directory / name).exists():
            raise ArtifactCorruptError(
                f"{directory / name} is no part of the artifact and would change its prompts; remove it, or export a "
                "checkpoint that has it",
                field=name,
            )


def read_most_picture_pixels(directory: Path) -> int:
    """Return the pixels of the largest picture as the model sees it; of the published models where no file here says.

    Only plans need it: `stages.prompt.pixel_budgets` reads what pictures are resized by. Raises `ArtifactCorruptError`.
    """
    for path in (directory / "processor_config.json", directory / "preprocessor_config.json"):
        if path.is_file():
            found = _decode(read_artifact_file(path), _Processor, path)
            said = found.image_processor or found
            if most := (said.size and said.size.longest_edge) or said.max_pixels:
                return most
    return _PUBLISHED_PICTURE_PIXELS


def _read_generation(directory: Path, manifest: WeightsManifest) -> GenerationDefaults:
    if not any(file.name == GENERATION_CONFIG_NAME for file in manifest.side_files):
        return GenerationDefaults()
    path = directory / GENERATION_CONFIG_NAME
    return _decode(read_artifact_file(path), GenerationDefaults, path)


def _decode(encoded: bytes, shape: type[S], path: Path) -> S:
    try:
        return msgspec.json.decode(encoded, type=shape)
    except msgspec.DecodeError as error:
        raise ArtifactCorruptError(f"{path}: {error}", field=path.name) from error


def _first_ids(*candidates: int | list[int] | None) -> tuple[int, ...]:
    """Return the first stated set of token ids; generation_config.json lists more than config.json does."""
    for candidate in candidates:
        if candidate is not None:
            return (candidate,) if isinstance(candidate, int) else tuple(candidate)
    return ()
