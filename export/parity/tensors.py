"""The checkpoint's tensors as transformers' parameters, and the artifact's against them bit by bit.

They are read by the safetensors library, dequantised by transformers, and turned as transformers turns them: experts
whose shape is not the parameter's are transposed. Nothing of the exporter is used but its list of files, so that what
it does wrong is found.

A matrix that `export --quantize` put into FP8 has other values than the checkpoint. They must be the nearest that FP8
has; the judge then computes with the artifact's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from broker_pipeline.artifact_manifest import FP8_DTYPE, TensorRecord
from broker_pipeline.errors import CheckpointError

_FP8 = torch.float8_e4m3fn
_INTEGERS = {2: torch.int16, 4: torch.int32}
_FP8_STEP = 1 / 16 + 2**-8  # half a step of a code, and the rounding of its value to bfloat16
_FP8_SMALL_STEP = 2**-10 / 448 * (1 + 2**-8)  # the same of the codes nearest to zero, by the largest value


class Damage(NamedTuple):
    """A tensor whose bits are not the checkpoint's."""

    tensor: str
    is_as_exported: bool
    """Whether the artifact's bytes are still those that its manifest lists."""
    sentence: str


class CheckpointTensors:
    """The tensors of a checkpoint's files, by hub name."""

    def __init__(self, directory: Path, files: Mapping[str, str]) -> None:
        """`files` says in which file of `directory` each tensor lies."""
        self._directory = directory
        self._files = files

    def pieces(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield parameter `name`, cut along its first axis: experts one by one, so that one is in memory at a time.

        Raises:
            CheckpointError: transformers cannot make it of what is stored.
        """
        if ".mlp.experts." not in name:
            yield _shaped(self._read(name), name, shape).to(dtype)
            return
        for expert in range(shape[0]):
            matrix = self._read(name, expert) if name in self._files else self._separate(name, expert)
            yield _shaped(matrix, name, shape[1:]).to(dtype)[None]

    def _separate(self, name: str, expert: int) -> Tensor:
        """Return one expert of a checkpoint that stores its matrices one by one; gate rows stand above up rows."""
        prefix, _, kind = name.rpartition(".")
        kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        return torch.cat([self._read(f"{prefix}.{expert}.{kind}.weight") for kind in kinds])

    def _read(self, name: str, index: int | None = None) -> Tensor:
        stored = self._stored(name, index)
        if stored.dtype != _FP8:
            return stored
        values: dict[str, Any] = {"weight": stored, "weight_scale_inv": self._stored(f"{name}_scale_inv", index)}
        try:
            return Fp8Dequantize(None).convert(values)["weight"]  # type: ignore[no-any-return]
        except ValueError as error:
            raise CheckpointError(f"transformers cannot dequantise {name}: {error}", field=name) from error

    def _stored(self, name: str, index: int | None) -> Tensor:
        if name not in self._files:
            raise CheckpointError(f"{self._directory} has no tensor {name}", field=name)
        # opened each time: a map that stays open counts as memory of this process, up to the whole file
        with safe_open(self._directory / self._files[name], framework="pt") as file:
            found: Tensor = file.get_tensor(name) if index is None else file.get_slice(name)[index : index + 1][0]
            return found


def judged_tensors(
    own: Mapping[str, Tensor], checkpoint: CheckpointTensors, records: Mapping[str, TensorRecord]
) -> tuple[dict[str, Tensor], list[Damage]]:
    """Return what the judge computes with, and the tensors of which the artifact and the checkpoint hold other bits.

    Where all bits are the same the judge gets the artifact's memory: a layer is in memory once. Else it gets the
    checkpoint's values.
    """
    judged, damages = dict(own), []
    for name, ours in own.items():
        judged[name], num_different, first = _checkpoint_values(ours, checkpoint, records[name])
        if num_different:
            damages.append(_damage(ours, judged[name], num_different, first, records[name]))
    return judged, damages


def _checkpoint_values(ours: Tensor, checkpoint: CheckpointTensors, record: TensorRecord) -> tuple[Tensor, int, int]:
    """Return the checkpoint's values; how many are others than ours, and the first of them, of all in a row."""
    theirs, start, num_different, first = ours, 0, 0, 0
    for piece in checkpoint.pieces(record.tied_to or record.name, tuple(ours.shape), ours.dtype):
        stop = start + len(piece)
        differs = (_bits(ours[start:stop]) != _bits(piece)).flatten()
        if differs.any() and not (record.dtype == FP8_DTYPE and _is_nearest(ours[start:stop], piece)):
            if theirs is ours:
                theirs, first = ours.clone(), start * ours[0].numel() + int(differs.byte().argmax())
            theirs[start:stop] = piece
            num_different += int(differs.sum())
        start = stop
    return theirs, num_different, first


def _is_nearest(ours: Tensor, theirs: Tensor) -> bool:
    """Say whether ours are theirs, rounded to FP8."""
    error, size = (ours.float() - theirs.float()).abs(), theirs.float().abs()
    return bool((error <= torch.maximum(size * _FP8_STEP, size.amax() * _FP8_SMALL_STEP)).all())


def _damage(ours: Tensor, theirs: Tensor, num_different: int, first: int, record: TensorRecord) -> Damage:
    content = ours.contiguous().reshape(-1).view(torch.uint8).numpy().data
    is_fp8 = record.dtype == FP8_DTYPE  # of which codes and scales were hashed, when they were read
    is_as_exported = is_fp8 or hashlib.sha256(content).hexdigest() == record.sha256
    since = "the checkpoint has changed since its export" if is_as_exported else "the artifact was altered"
    place = [int(index) for index in torch.unravel_index(torch.tensor(first), ours.shape)]
    sentence = (
        f"{record.name} ({record.file}): {num_different} of {ours.numel()} values differ, the first at {place}: "
        f"0x{_hex(ours, first)} in the artifact, 0x{_hex(theirs, first)} in the checkpoint; {since}"
    )
    return Damage(record.name, is_as_exported, sentence)


def _shaped(tensor: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) == shape:
        return tensor
    if ".mlp.experts." in name and tuple(tensor.t().shape) == shape:
        return tensor.t()
    raise CheckpointError(f"{name} has shape {list(tensor.shape)}; transformers wants {list(shape)}", field=name)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_INTEGERS[tensor.dtype.itemsize])


def _hex(tensor: Tensor, index: int) -> str:
    size = tensor.dtype.itemsize
    return f"{int(_bits(tensor).flatten()[index]) & (1 << 8 * size) - 1:0{2 * size}x}"
