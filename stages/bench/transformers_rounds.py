"""The same work by transformers' `generate`: `python -m stages.bench.transformers_rounds ORDER.json ROUNDS.json`.

`model` of the order is a checkpoint as the hub has it. Pictures become patches by our code, since
transformers' own wants torchvision; they are taken `num_in_flight` at a time: `generate` ends
when the last of a batch has ended, and here all of them have the same number of tokens.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from broker_pipeline.bench.cpu_time import CpuClock
from broker_pipeline.bench.work import InProcessOrder, Round, Work
from stages.bench.continuous import RULES, message, read_patches
from stages.prompt.chat import PromptBuilder, VisualInput
from stages.prompt.preprocess import PixelBudget
from stages.qwen3_vl.config import ModelConfig

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Generator:
    """A checkpoint, loaded by transformers."""

    def __init__(self, order: InProcessOrder) -> None:
        # By name, since nothing of the project may need it.
        transformers = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        dtype = _DTYPES[order.dtype] if order.dtype else "auto"
        load = transformers.AutoModelForImageTextToText.from_pretrained
        self._model: Any = load(order.model, dtype=dtype).to(order.device).eval()
        directory = Path(order.model)
        self._config = ModelConfig.from_json((directory / "config.json").read_bytes())
        self._prompts = PromptBuilder.from_directory(self._config, directory)
        rules = (directory / RULES).read_bytes()
        self._budget = PixelBudget.from_json(rules, self._config.vision, file=RULES)
        self._directory = Path(order.pictures)

    def run(self, work: Work) -> int:
        """Do all of it; returns the number of tokens that were generated."""
        num_tokens = 0
        for first in range(0, len(work.pictures), work.num_in_flight):
            num_tokens += self._generate(work.pictures[first : first + work.num_in_flight], work)
        return num_tokens

    def _generate(self, names: Sequence[str], work: Work) -> int:
        inputs = self._inputs(names, work.prompt)
        generated = self._model.generate(
            **{name: tensor.to(self._model.device) for name, tensor in inputs.items()},
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            min_new_tokens=work.num_output_tokens,
            max_new_tokens=work.num_output_tokens,
        )
        return int((generated.shape[1] - inputs["input_ids"].shape[1]) * generated.shape[0])

    def _inputs(self, names: Sequence[str], prompt: str) -> dict[str, Tensor]:
        """What transformers' processor would make of them; pictures of one size need no padding."""
        paths = [self._directory / name for name in names]
        patches = [read_patches(path, self._config, self._budget) for path in paths]
        grids = [each.grid for each in patches]
        prompts = [self._prompts.build([message(prompt)], [VisualInput("image", grid)]) for grid in grids]
        ids = torch.tensor([prompt.token_ids for prompt in prompts])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._config.image_token_id).long(),
            "pixel_values": torch.cat([each.rows for each in patches]).to(self._model.dtype),
            "image_grid_thw": torch.tensor([[grid.frames, grid.height, grid.width] for grid in grids]),
        }


def main(arguments: Sequence[str]) -> None:
    """Read an order, write its rounds."""
    asked, answered = map(Path, arguments)
    order = msgspec.json.decode(asked.read_bytes(), type=InProcessOrder)
    torch.set_num_threads(order.num_threads)
    generator = Generator(order)
    with torch.inference_mode():
        generator.run(order.warm_up)
        rounds = [_timed(generator, work) for work in order.rounds]
    answered.write_bytes(msgspec.json.encode(rounds))


def _timed(generator: Generator, work: Work) -> Round:
    clock = CpuClock({"transformers": os.getpid()})
    started = time.perf_counter()
    num_tokens = generator.run(work)
    seconds = time.perf_counter() - started
    assert num_tokens == work.num_tokens, f"{num_tokens} tokens instead of {work.num_tokens}"
    return Round(seconds=seconds, num_pictures=len(work.pictures), num_tokens=num_tokens, cpu_s=clock.passed())


if __name__ == "__main__":
    main(sys.argv[1:])
