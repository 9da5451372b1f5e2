"""Which tensors of a checkpoint become which tensors of the artifact.

Experts come in three layouts; the artifact has the runtime one. `H` hidden size, `I` expert width:

    layout       gate and up                      down
    hub          mlp.experts.gate_up_proj         mlp.experts.down_proj      as the hub's files have them
                 [E, H, 2I]                       [E, I, H]
    runtime      mlp.experts.gate_up_proj         mlp.experts.down_proj      as transformers 5 saves them
                 [E, 2I, H]                       [E, H, I]
    per-expert   mlp.experts.0.gate_proj.weight   mlp.experts.0.down_proj.weight
                 [I, H], and up_proj alike        [H, I]

The first two differ by nothing but shape, so where H = 2I or H = I the shape decides nothing and guessing wrong would
give a model that answers nonsense without an error: such a checkpoint is refused unless the user states the layout.
Each of the three may hold FP8 codes with a scale for each block alongside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from broker_pipeline.artifact_files.safetensors_header import SAFETENSORS_CODES
from broker_pipeline.artifact_manifest import Dtype, SourceLayout, StoredDtype
from broker_pipeline.errors import AmbiguousLayoutError, CheckpointError
from export.recipe import BlockScale, FusedExperts, Plain, Recipe, SeparateExperts
from export.source.name_groups import group_names
from export.source.shard import SourceTensor

ExpertLayout = Literal["auto", "hub", "runtime"]
FP8 = "F8_E4M3"
CONVERTIBLE = {"BF16", "F32", "F16"}
SCALE_DTYPES = {"F32", "BF16"}
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
# Computed from the configuration when a model is built; some programs save them all the same.
BUFFERS = {"inv_freq", "original_inv_freq", "position_ids"}
_SEPARATE = re.compile(r"(.*\.)mlp\.experts\.\d+\.")
_MATRICES = {GATE_UP: ("gate_proj", "up_proj"), DOWN: ("down_proj",)}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the artifact and how it is made."""

    name: str
    dtype: StoredDtype
    shape: tuple[int, ...]
    recipe: Recipe
    layout: SourceLayout
    transposed: bool

    @property
    def source_files(self) -> tuple[str, ...]:
        """Names of the checkpoint's files that it is made from, sorted."""
        return tuple(sorted({tensor.file for tensor in self.recipe.sources()}))


@dataclass(frozen=True, slots=True)
class LayoutRules:
    """What the user and the configuration say about the checkpoint's values."""

    dtype: Dtype
    convert: bool
    """Whether the user asked for `dtype`, so that other ones may be converted."""
    expert_layout: ExpertLayout
    fp8_block: tuple[int, int]


@dataclass(slots=True)
class LayoutResolver:
    """Finds recipes for tensors; what cannot be found is collected, so that one error lists everything."""

    found: Mapping[str, SourceTensor]
    rules: LayoutRules
    _used: set[str] = field(default_factory=set)
    _problems: dict[str, list[str]] = field(default_factory=dict)
    _ambiguous: list[str] = field(default_factory=list)
    _separate_prefixes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        matches = (_SEPARATE.match(name) for name in self.found)
        self._separate_prefixes = {match[1] for match in matches if match is not None}

    def resolve(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[PlannedTensor, ...]:
        """Return the tensors of `shapes` (runtime layout) that the checkpoint can make."""
        planned = [self._resolve(name, shape) for name, shape in shapes.items()]
        return tuple(tensor for tensor in planned if tensor is not None)

    def finish(self) -> tuple[str, ...]:
        """Raise for all that was missing, wrong, ambiguous or left over; return the buffers that are not exported.

        Raises:
            CheckpointError: lists every such tensor.
            AmbiguousLayoutError: nothing else is wrong than that shapes do not tell the expert layout.
        """
        left_over = self.found.keys() - self._used
        buffers = {name for name in left_over if name.rpartition(".")[2] in BUFFERS}
        unexpected = left_over - buffers
        problems = self._problems | ({"unexpected": sorted(unexpected)} if unexpected else {})
        if problems:
            sections = [_section(title, problems[title]) for title in problems]
            raise CheckpointError("\n".join([_mismatch(unexpected), *sections]))
        if self._ambiguous:
            raise AmbiguousLayoutError(_ambiguity(self._ambiguous), field="expert-layout")
        return tuple(sorted(buffers))

    def _resolve(self, name: str, shape: tuple[int, ...]) -> PlannedTensor | None:
        part = next((part for part in _MATRICES if name.endswith("." + part)), None)
        if part is None:
            plain = self._plain(name, shape)
            layout: SourceLayout = "fp8" if plain is not None and plain.scale is not None else "plain"
            return None if plain is None else self._planned(name, shape, plain, layout)
        prefix = name.removesuffix(part)
        if name not in self.found and prefix in self._separate_prefixes:
            return self._separate_experts(name, shape, prefix, part)
        return self._fused_experts(name, shape)

    def _plain(self, name: str, shape: tuple[int, ...]) -> Plain | None:
        tensor = self._take(name, {shape})
        if tensor is None:
            return None
        scale = self._scale(tensor, f"{name}_scale_inv")
        return Plain(tensor, scale) if self._dtype_fits(tensor, scale) else None

    def _fused_experts(self, name: str, shape: tuple[int, ...]) -> PlannedTensor | None:
        turned = (shape[0], shape[2], shape[1])
        tensor = self._take(name, {shape, turned})
        if tensor is None:
            return None
        scale = self._scale(tensor, f"{name}_scale_inv")
        if not self._dtype_fits(tensor, scale):
            return None
        layout = self._fused_layout(tensor, shape, turned)
        if layout is None:
            return None
        recipe = FusedExperts(tensor, layout == "hub", scale)
        source_layout: SourceLayout = "fp8-fused" if scale else layout
        return self._planned(name, shape, recipe, source_layout, transposed=layout == "hub")

    def _fused_layout(
        self, tensor: SourceTensor, runtime: tuple[int, ...], hub: tuple[int, ...]
    ) -> Literal["hub", "runtime"] | None:
        stated = self.rules.expert_layout
        if stated == "auto":
            if runtime == hub:
                self._ambiguous.append(tensor.name)
                return None
            return "runtime" if tensor.shape == runtime else "hub"
        if tensor.shape != (runtime if stated == "runtime" else hub):
            self._report(f"not in the {stated} layout that was asked for", _shaped(tensor))
            return None
        return stated

    def _separate_experts(self, name: str, shape: tuple[int, ...], prefix: str, part: str) -> PlannedTensor | None:
        kinds = _MATRICES[part]
        matrix_shape = (shape[1] // len(kinds), shape[2])
        matrices = [
            self._plain(f"{prefix}mlp.experts.{expert}.{kind}.weight", matrix_shape)
            for expert in range(shape[0])
            for kind in kinds
        ]
        whole = [matrix for matrix in matrices if matrix is not None]
        if len(whole) != len(matrices):
            return None
        is_fp8 = any(matrix.scale is not None for matrix in whole)
        layout: SourceLayout = "fp8-per-expert" if is_fp8 else "per-expert"
        return self._planned(name, shape, SeparateExperts(tuple(whole)), layout)

    def _planned(
        self, name: str, shape: tuple[int, ...], recipe: Recipe, layout: SourceLayout, *, transposed: bool = False
    ) -> PlannedTensor:
        return PlannedTensor(name, self.rules.dtype, shape, recipe, layout, transposed)

    def _take(self, name: str, shapes: set[tuple[int, ...]]) -> SourceTensor | None:
        tensor = self.found.get(name)
        if tensor is None:
            self._report("missing", name)
            return None
        self._used.add(name)
        if tensor.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in sorted(shapes))
            self._report("wrong shape", f"{_shaped(tensor)} instead of {wanted}")
            return None
        return tensor

    def _scale(self, tensor: SourceTensor, name: str) -> BlockScale | None:
        scale = self.found.get(name)
        if tensor.dtype != FP8 or scale is None:
            return None
        self._used.add(name)
        rows, columns = self.rules.fp8_block
        *experts, num_out, num_in = tensor.shape
        shape = (*experts, math.ceil(num_out / rows), math.ceil(num_in / columns))
        if scale.shape != shape or scale.dtype not in SCALE_DTYPES:
            self._report("wrong shape", f"{_shaped(scale)} instead of {list(shape)} in F32 or BF16")
        return BlockScale(scale, rows, columns)

    def _dtype_fits(self, tensor: SourceTensor, scale: BlockScale | None) -> bool:
        if scale is not None or tensor.dtype == SAFETENSORS_CODES[self.rules.dtype]:
            return True
        if tensor.dtype == FP8:
            self._report("FP8 codes without a scale alongside them", tensor.name)
        elif tensor.dtype not in CONVERTIBLE:
            self._report(f"of dtype {tensor.dtype}, which cannot be exported", tensor.name)
        elif not self.rules.convert:
            title = f"of dtype {tensor.dtype} instead of {self.rules.dtype} (--dtype {self.rules.dtype} converts them)"
            self._report(title, tensor.name)
        else:
            return True
        return False

    def _report(self, title: str, name: str) -> None:
        self._problems.setdefault(title, []).append(name)


def _mismatch(unexpected: set[str]) -> str:
    if any(".lora_" in name for name in unexpected):
        return (
            "the checkpoint's tensors are a LoRA adapter's, or hold one that was not merged: merge it into its base "
            "model (peft: merge_and_unload().save_pretrained(DIRECTORY)) and export that DIRECTORY."
        )
    return "the checkpoint's tensors are not the ones that its config.json asks for."


def _shaped(tensor: SourceTensor) -> str:
    return f"{tensor.name} {list(tensor.shape)}"


def _section(title: str, names: list[str]) -> str:
    return "\n".join([f"{title} ({len(names)}):", *(f"  {line}" for line in group_names(names))])


def _ambiguity(names: list[str]) -> str:
    return (
        "the expert tensors are square, so their shape does not tell the hub's layout ([E, in, out]) from the one that "
        "transformers 5 saves ([E, out, in]), and the wrong guess would load without an error and answer nonsense. "
        "Say which one it is: --expert-layout hub (files as the hub has them) or --expert-layout runtime "
        "(re-saved by transformers 5).\n" + "\n".join(f"  {line}" for line in group_names(names))
    )
