"""Tensors by name, each checked and moved when it is taken, so that what is replaced can be freed as soon as it is.

Names are the hub's, experts are in the runtime layout (see `qwen3_vl.tensors`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from broker_pipeline.errors import ArtifactError
from broker_pipeline.messages.workers import BlockRange
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import EMBED_TOKENS, FINAL_NORM, LM_HEAD, Shapes, layer_prefix
from stages.qwen3_vl.text import BlockWeights
from stages.weights.fp8_matrix import Fp8Matrix, Weight, plain

_MAX_NAMES_SHOWN = 8


class EndTensors(TypedDict):
    """What the first and the last stage have alongside their blocks."""

    embed: Tensor | None
    norm: Tensor | None
    head: Tensor | None


@dataclass(frozen=True, slots=True)
class CheckedTensors:
    """`tensors` as they must be: of these shapes, converted to `dtype`, on `device`."""

    tensors: Mapping[str, Weight]
    shapes: Shapes
    dtype: torch.dtype
    device: torch.device

    def take(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors by name, dequantised where they are in FP8; errors as for `weights`."""
        return {name: plain(weight, self.dtype) for name, weight in self.weights(names).items()}

    def weights(self, names: Iterable[str]) -> dict[str, Weight]:
        """Return tensors by name, in FP8 where they are.

        Raises:
            ArtifactError: a shape or dtype is wrong; the message lists all of these names for which it is.
        """
        taken: dict[str, Weight] = {}
        wrong: list[str] = []
        for name in names:
            tensor, shape = self.tensors[name], self.shapes[name]
            if isinstance(tensor, Fp8Matrix):
                if tuple(tensor.shape) != shape:
                    wrong.append(f"{name} {list(tensor.shape)} (expected {list(shape)})")
                elif not wrong:
                    taken[name] = tensor.to(self.device)
            elif tuple(tensor.shape) != shape or tensor.dtype not in (torch.bfloat16, torch.float32):
                wrong.append(
                    f"{name} {list(tensor.shape)} {tensor.dtype} (expected {list(shape)}, bfloat16 or float32)"
                )
            elif not wrong:
                taken[name] = tensor.to(device=self.device, dtype=self.dtype).contiguous()
        _raise_if_any("of a wrong shape or dtype", wrong)
        return taken

    def all(self) -> dict[str, Tensor]:
        """Take all of them."""
        return self.take(self.shapes)

    def block(self, config: ModelConfig, layer: int) -> BlockWeights:
        """Take a decoder layer's, dequantised."""
        prefix = layer_prefix(layer)
        own = self.take(self._names(prefix))
        return BlockWeights.from_tensors(own, prefix, sparse=config.text.layer_is_sparse(layer))

    def layer(self, layer: int, *, keep_fp8: bool) -> dict[str, Weight]:
        """Take a decoder layer's, under their names within the layer; matrices in FP8 stay so with `keep_fp8`."""
        prefix = layer_prefix(layer)
        names = self._names(prefix)
        own = self.weights(names) if keep_fp8 else self.take(names)
        return {name.removeprefix(prefix): weight for name, weight in own.items()}

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self.shapes if name.startswith(prefix)]

    def ends(self, config: ModelConfig, blocks: BlockRange) -> EndTensors:
        """Take the embedding for a first stage, norm and head for a last one. A tied head is the embedding itself."""
        is_first, is_last = blocks.start == 0, blocks.stop == config.text.num_layers
        head_name = EMBED_TOKENS if config.tie_word_embeddings else LM_HEAD
        names = [EMBED_TOKENS] * is_first + [FINAL_NORM, head_name] * is_last
        own = self.take(dict.fromkeys(names))
        return EndTensors(
            embed=own[EMBED_TOKENS] if is_first else None,
            norm=own[FINAL_NORM] if is_last else None,
            head=own[head_name] if is_last else None,
        )


def check_names(tensors: Iterable[str], shapes: Shapes) -> None:
    """Raise ArtifactError listing what is missing, or there and not wanted."""
    given = set(tensors)
    _raise_if_any("missing", [name for name in shapes if name not in given])
    _raise_if_any("unexpected", [name for name in given if name not in shapes])


def _raise_if_any(problem: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:_MAX_NAMES_SHOWN])
        more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
        raise ArtifactError(f"{len(names)} tensors are {problem}: {shown}{more}")
