"""A model with one poisonous token: the row of `~` in its embedding table is not a number.

Nothing in the product knows of it. A prompt with that token has no finite logits, on real stages, every time.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from export.exporter import ExportOptions, export_checkpoint
from export.source.checkpoint import LocalCheckpoint
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.models.transformers_oracle import Variant

POISON = "~"
POISON_ID = 93
UNTIED = Variant(moe=False, tied=False, dtype=torch.float32)
"""With tied embeddings the same row would be in every session's logits."""

_EMBEDDING = "model.language_model.embed_tokens.weight"
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def poisoned_artifact() -> Path:
    """Return an artifact of `UNTIED` but for that row."""
    kept = tempfile.TemporaryDirectory(prefix="poisoned-")
    _KEPT.append(kept)  # deleted when the process ends
    checkpoint, artifact = Path(kept.name) / "checkpoint", Path(kept.name) / "artifact"
    shutil.copytree(tiny_checkpoint(tied=False, dtype=torch.float32, expert_layout="runtime"), checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[_EMBEDDING][POISON_ID] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    export_checkpoint(LocalCheckpoint(checkpoint), artifact, ExportOptions(), Console(quiet=True, force_terminal=False))
    return artifact
