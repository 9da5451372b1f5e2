"""What the conductor knows of the model: facts, vocabulary, limits. No torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.messages.status import SessionLimits
from broker_pipeline.model_facts import ModelFacts, check_side_files, read_model_facts
from broker_pipeline.scheduling.policies.prompt_limits import MIN_TOKENS_IN_ALL, PromptLimits


@dataclass(frozen=True, slots=True)
class TextModel:
    """An artifact's small files."""

    facts: ModelFacts
    vocabulary: Vocabulary
    default_max_tokens: int | None = None
    """Output limit of jobs that ask for none; None: what the model's generation_config says, if anything."""

    @classmethod
    def open(cls, directory: Path, default_max_tokens: int | None = None) -> Self:
        """Read an artifact's small files, every byte checked. Raises `ArtifactError`."""
        check_side_files(directory, read_manifest(directory))
        return cls(read_model_facts(directory), Vocabulary.open(directory), default_max_tokens)

    def limits(self, num_asked: int | None, kv_capacity_tokens: int) -> PromptLimits:
        """Return the limits of one job; raises `PromptTooLongError` when the output alone is too long."""
        stated = self.default_max_tokens or self.facts.generation.max_new_tokens
        return PromptLimits(num_asked, stated, self.facts.max_position_embeddings, kv_capacity_tokens)

    def shown_limits(self, kv_capacity_tokens: int) -> SessionLimits:
        """Return what is shown of the limits; without a route, 0 tokens, what the model takes counts."""
        room = kv_capacity_tokens or self.facts.max_position_embeddings
        shown = self.limits(None, max(room, MIN_TOKENS_IN_ALL)).shown()
        return msgspec.structs.replace(shown, longest_token_bytes=self.vocabulary.longest_token_bytes)
