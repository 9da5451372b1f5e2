"""The same work by transformers' `generate`, as a program (see `LoadedProcess`).

The model is built from the artifact's configuration, and gets the very tensors that our own computation gets: nothing
is read from a checkpoint. Pictures become patches by our code, since transformers' own wants torchvision; they are
taken `num_in_flight` at a time: `generate` ends when the last of a batch has ended, and here all of them have the same
number of tokens.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import orjson
import torch
from torch import Tensor

from broker_pipeline.artifact_manifest import CONFIG_NAME
from broker_pipeline.errors import ArtifactError
from stages.artifact import Artifact
from stages.compute.loading import compute_dtype
from stages.device.choice import choose_device
from stages.qwen3_vl.patches import pixel_values
from stages.qwen3_vl.tensors import LM_HEAD, model_shapes
from trials.bench.in_process.rounds import serve_rounds
from trials.bench.work import InProcessOrder, Work
from trials.prompts import Prompts


class Generator:
    """An artifact's model, as transformers computes it."""

    def __init__(self, order: InProcessOrder) -> None:
        """Load the model."""
        artifact = Artifact.open(order.model)
        self._model = build_model(artifact, choose_device(order.device), order.dtype)
        self._config = artifact.config
        self._prompts = Prompts(artifact)
        self._pictures = Path(order.rounds.pictures)
        self.num_prompt_tokens = 0
        """Of the last session."""

    def run(self, work: Work) -> int:
        """Do all of it and return the number of tokens that were generated."""
        num_tokens = 0
        for first in range(0, len(work.pictures), work.num_in_flight):
            num_tokens += self._generate(work.pictures[first : first + work.num_in_flight], work)
        return num_tokens

    def _generate(self, names: Sequence[str], work: Work) -> int:
        inputs = self._inputs(names, work.prompt)
        self.num_prompt_tokens = inputs["input_ids"].shape[1]
        generated = self._model.generate(
            **{name: tensor.to(self._model.device) for name, tensor in inputs.items()},
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            min_new_tokens=work.num_output_tokens,
            max_new_tokens=work.num_output_tokens,
        )
        return int((generated.shape[1] - self.num_prompt_tokens) * generated.shape[0])

    def _inputs(self, names: Sequence[str], prompt: str) -> dict[str, Tensor]:
        """Return what transformers' processor would make of them; pictures of one size need no padding."""
        patches = [self._prompts.patches(self._pictures / name) for name in names]
        grids = [each.grid for each in patches]
        ids = torch.tensor([self._prompts.build(prompt, [each]).token_ids for each in patches])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._config.image_token_id).long(),
            "pixel_values": pixel_values(torch.cat([each.rows for each in patches]), self._config.vision).to(
                self._model.dtype
            ),
            "image_grid_thw": torch.tensor([[grid.frames, grid.height, grid.width] for grid in grids]),
        }


def build_model(artifact: Artifact, device: torch.device, dtype_name: str | None = None) -> Any:
    """Build transformers' model with an artifact's tensors, on `device`.

    Raises:
        ArtifactError: transformers wants tensors that the artifact does not have.
    """
    transformers = importlib.import_module("transformers")  # by name, since nothing of the project may need it
    transformers.logging.set_verbosity_error()
    dtype = compute_dtype(artifact.config, dtype_name)
    fields = orjson.loads((artifact.directory / CONFIG_NAME).read_bytes())
    config = transformers.AutoConfig.for_model(**fields)
    with device, _without_initial_values():
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    tensors = artifact.load(model_shapes(artifact.config), device, dtype)
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    if unexpected or set(missing) - {LM_HEAD if artifact.config.tie_word_embeddings else ""}:
        raise ArtifactError(f"transformers {transformers.__version__} names its tensors otherwise: {missing[:8]}")
    return model.eval()


def _without_initial_values() -> AbstractContextManager[Any]:
    """Return transformers' own context for that where this release has it: drawing values to replace takes time."""
    for name in ("transformers.initialization", "transformers.modeling_utils"):
        if importlib.util.find_spec(name) is not None:
            found = getattr(importlib.import_module(name), "no_init_weights", None)
            if found is not None:
                return cast("AbstractContextManager[Any]", found())
    return nullcontext()


if __name__ == "__main__":
    serve_rounds(Generator, "transformers")
