"""What services do with an artifact's small files, done once before its weights are written.

A wrong template, tokenizer or rule for pictures stops an export at its beginning, not the services at their start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from broker_pipeline.artifact_manifest import CONFIG_NAME
from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.errors import ArtifactError, CheckpointError, InvalidRequestError
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, MediaRef, TextPart
from broker_pipeline.model_facts import GENERATION_CONFIG_NAME, ModelFacts, read_model_facts
from export.side_files.bpe_tokenizer import MERGES, SETTINGS, VOCABULARY
from stages.artifact import Artifact
from stages.prompt.chat import PromptBuilder, VisualInput
from stages.prompt.chat_template import ChatTemplate
from stages.prompt.pixel_budgets import read_pixel_budgets
from stages.prompt.tokenizer import TOKENIZER_FILE
from stages.qwen3_vl.patches import PatchGrid

_PICTURE = ImagePart(media=MediaRef(sha256="0" * 64, object_name="none", num_bytes=0))
_QUESTION = ChatMessage(role="user", content=(_PICTURE, TextPart(text="What is it?")))


def rehearse_serving(files: Mapping[str, bytes]) -> None:
    """Open an artifact of these files, which holds no weights, as conductor and vision worker do; write one prompt.

    Raises:
        CheckpointError: lists what could not be served, and what to do about it.
    """
    with TemporaryDirectory(prefix="export-rehearsal-") as name:
        directory = Path(name)
        for file, content in files.items():
            (directory / file).write_bytes(content)
        problems = _problems(Artifact.open(directory))
    if problems:
        lines = "".join(f"\n  {problem.message}" for problem in problems)
        text = lines.replace(f"{directory}/", "").replace(CONFIG_NAME, "config.json")
        raise CheckpointError(f"the checkpoint could not be served:{text}", field=problems[0].field)


def _problems(artifact: Artifact) -> list[ArtifactError]:
    """Return what is wrong with each kind of file, and if nothing is, with the prompt that they make."""
    parts: tuple[Callable[[Artifact], object], ...] = (_facts, _tokenizer, _template, _budgets)
    errors = [error for part in parts if (error := _error_of(part, artifact))]
    last = _error_of(_prompt, artifact) if not errors else None
    return [*errors, *([last] if last else [])]


def _error_of(part: Callable[[Artifact], object], artifact: Artifact) -> ArtifactError | None:
    try:
        part(artifact)
    except ArtifactError as error:
        return error
    return None


def _facts(artifact: Artifact) -> None:
    _check_ends(read_model_facts(artifact.directory))


def _tokenizer(artifact: Artifact) -> None:
    if not artifact.has(TOKENIZER_FILE):
        raise CheckpointError(
            f"no {TOKENIZER_FILE}, nor {VOCABULARY} and {MERGES} to make it from. Copy {TOKENIZER_FILE} and {SETTINGS} "
            "from the model that this one was made from.",
            field=TOKENIZER_FILE,
        )
    Vocabulary.open(artifact.directory)


def _template(artifact: Artifact) -> None:
    ChatTemplate.from_directory(artifact.directory)


def _budgets(artifact: Artifact) -> None:
    read_pixel_budgets(artifact.directory, artifact.config.vision)


def _prompt(artifact: Artifact) -> None:
    prompts = PromptBuilder.from_directory(artifact.config, artifact.directory)
    merge = artifact.config.vision.spatial_merge_size
    try:
        prompts.build([_QUESTION], [VisualInput("image", PatchGrid(1, merge, merge))])
    except InvalidRequestError as error:
        raise CheckpointError(
            f"the chat template cannot ask about a picture ({error.message}): it is of another model. Copy it from the "
            "model that this one was made from.",
            field="chat_template",
        ) from error


def _check_ends(facts: ModelFacts) -> None:
    """Raise for a model whose answers would never end."""
    if not facts.eos_token_ids:
        raise CheckpointError(
            f"neither {GENERATION_CONFIG_NAME} nor config.json says which token ends an answer (eos_token_id). Copy "
            f"{GENERATION_CONFIG_NAME} from the model that this one was made from.",
            field="eos_token_id",
        )
    if max(facts.eos_token_ids) >= facts.vocab_size:
        raise CheckpointError(
            f"eos_token_id is {max(facts.eos_token_ids)}, beyond the {facts.vocab_size} rows of the embedding: "
            f"{GENERATION_CONFIG_NAME} is of another model. Copy it from the model that this one was made from.",
            field="eos_token_id",
        )
