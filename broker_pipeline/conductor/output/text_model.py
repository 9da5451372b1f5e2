"""What the conductor knows of the model: facts, vocabulary, limits. No torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.model_facts import ModelFacts, check_side_files, read_model_facts
from broker_pipeline.scheduling.policies.prompt_limits import PromptLimits


@dataclass(frozen=True, slots=True)
class TextModel:
    """An artifact's small files."""

    facts: ModelFacts
    vocabulary: Vocabulary
    default_max_tokens: int

    @classmethod
    def open(cls, directory: Path, default_max_tokens: int) -> Self:
        """Read an artifact's small files, every byte checked. Raises `ArtifactError`."""
        check_side_files(directory, read_manifest(directory))
        return cls(read_model_facts(directory), Vocabulary.open(directory), default_max_tokens)

    def limits(self, num_asked: int | None, kv_capacity_tokens: int) -> PromptLimits:
        """Return the limits of one job; raises `PromptTooLongError` when the output alone is too long."""
        return PromptLimits(num_asked, self.default_max_tokens, self.facts.max_position_embeddings, kv_capacity_tokens)
