"""The comparison of one artifact with one checkpoint, part after part.

    files, prompts ─► tower ─► embedding ─► decoder layer 0, 1, … ─► head ─► greedy tokens
                        rows ──────┴──────────────┘

Both sides of a part get the judge's hidden states, so that what is wrong in one part is not seen in the next.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from broker_pipeline.errors import CheckpointError
from broker_pipeline.tools.file_progress import ProgressReport
from export.parity import ours
from export.parity.judge import Judge, Tensors, dtype_of
from export.parity.part import Difference, Outputs, Pair, Part, tolerance_of
from export.parity.processor import Processor, compare_prompts
from export.parity.progress import Progress
from export.parity.receipt import Greedy
from export.parity.scenes import Scene, SceneMaker
from export.parity.tensors import CheckpointTensors, Damage, judged_tensors
from export.planned_artifact import collect_side_files
from export.source.checkpoint import LocalCheckpoint
from stages.artifact import Artifact
from stages.qwen3_vl.tensors import Shapes, embedding_shapes, head_shapes, layer_shapes, model_shapes, vision_shapes

Compute = Callable[[Tensors, Tensors], Outputs]
"""Computes parts with our tensors and with the judge's."""


class Comparison:
    """Compares what `progress` does not have yet, and leaves it there."""

    def __init__(self, artifact: Artifact, checkpoint: LocalCheckpoint, directory: Path, progress: Progress) -> None:
        """Open both sides; `directory` is the checkpoint's."""
        self._config = artifact.config
        self._artifact = artifact
        self._checkpoint = checkpoint
        self._directory = directory
        self._progress = progress
        self._records = artifact.manifest.by_name()
        files = {name: tensor.file for name, tensor in checkpoint.tensors.items()}
        self._tensors = CheckpointTensors(directory, files)
        self._judge = Judge(directory, artifact.config)
        self.scenes = tuple(SceneMaker(artifact).make_all())

    @torch.inference_mode()
    def run(self, console: Console) -> None:
        """Compare every part, and say on `console` how far this has come.

        Raises:
            CheckpointError: the checkpoint is another one than the artifact's.
        """
        if not self._progress.has("files"):
            prompts = compare_prompts(Processor(self._directory, self._config), self._judge, self.scenes, self._config)
            self._progress.finish([_compare_files(self._artifact, self._checkpoint), *prompts])
        steps = list(self._steps())
        sizes = [sum(self._records[name].size_bytes for name in shapes) for _, shapes, _ in steps]
        with ProgressReport("comparing", sum(sizes), len(steps), console) as report:
            for (step, shapes, compute), size_bytes in zip(steps, sizes, strict=True):
                result = self._compare(step, shapes, compute)
                report.advance(size_bytes)
                report.file_done(step, size_bytes, result)

    @torch.inference_mode()
    def generate(self, num_tokens: int) -> Iterator[Greedy]:
        """Yield how many greedy tokens of each scene are the same; both sides share the artifact's tensors."""
        tensors = self._artifact.load(model_shapes(self._config), verify=False)  # every part was compared before
        for scene in self.scenes:
            tokens = ours.generate(self._config, tensors, scene, num_tokens)
            logits = self._judge.generate(tensors, scene, num_tokens)
            yield count_equal(scene.name, tokens, logits, tolerance_of(self._artifact.dtype))

    def _steps(self) -> Iterator[tuple[str, Shapes, Compute]]:
        """Yield one of the parts that are compared together, the tensors that they have, and what computes them."""
        config = self._config
        yield "visual.merger", vision_shapes(config), self._tower
        yield "embed_tokens", embedding_shapes(config), self._embedding
        for layer in range(config.text.num_layers):
            yield f"layers.{layer}", layer_shapes(config, layer), partial(self._layer, layer)
        yield "lm_head", head_shapes(config), self._head

    def _compare(self, step: str, shapes: Shapes, compute: Compute) -> str:
        """Compare the parts of a step, unless an earlier run did, and return the result in a word."""
        if self._progress.has(step):
            return "kept"
        started = time.monotonic()
        # Compared with the checkpoint's, to name the bit; in FP8, values do not tell whether codes are as exported.
        own = self._artifact.load(shapes, verify=self._artifact.manifest.is_fp8)
        theirs, damages = judged_tensors(own, self._tensors, self._records)
        self._refuse_another(step, len(shapes), damages)
        outputs = compute(own, theirs)
        self._keep(outputs)
        parts = _measure(outputs, damages, lambda: _widened(compute, own), started)
        self._progress.finish(parts)
        return "equal" if all(part.is_within for part in parts) else "DIFFERENT"

    def _refuse_another(self, step: str, num_tensors: int, damages: Sequence[Damage]) -> None:
        """Refuse a checkpoint of which nothing is in the artifact, before more time is spent on it."""
        if len(damages) == num_tensors > 1 and all(damage.is_as_exported for damage in damages):
            raise CheckpointError(
                f"{self._directory} is another checkpoint than the one that {self._artifact.directory} was exported "
                f"from: no tensor of {step} is the same",
                field="parity",
            )

    def _tower(self, own: Tensors, theirs: Tensors) -> Outputs:
        outputs: dict[str, list[Pair]] = {}
        for scene in self.scenes:
            if scene.visuals:
                judged = self._judge.run_tower(theirs, scene)
                for name, pair in ours.run_tower(self._config, own, scene, judged).items():
                    outputs.setdefault(name, []).append(pair)
        return outputs

    def _embedding(self, own: Tensors, theirs: Tensors) -> Outputs:
        states = [(scene, self._rows(scene, 0, dtype_of(own))) for scene in self.scenes]
        return {"embed_tokens": [(ours.embed(own, *each), self._judge.embed(theirs, *each)) for each in states]}

    def _layer(self, layer: int, own: Tensors, theirs: Tensors) -> Outputs:
        pairs: list[Pair] = []
        for scene in self.scenes:
            dtype = dtype_of(own)
            state = scene, self._progress.hidden[scene.name].to(dtype), self._rows(scene, layer + 1, dtype)
            judged = self._judge.run_layer(layer, theirs, *state)
            pairs.append((ours.run_layer(self._config, layer, own, *state), judged))
        return {f"layers.{layer}": pairs}

    def _head(self, own: Tensors, theirs: Tensors) -> Outputs:
        states = [hidden.to(dtype_of(own)) for hidden in self._progress.hidden.values()]
        return {"lm_head": [(ours.run_head(self._config, own, x), self._judge.run_head(theirs, x)) for x in states]}

    def _rows(self, scene: Scene, index: int, dtype: torch.dtype) -> Tensor | None:
        """Return the visual rows that replace embeddings (0), or are added behind layer `index - 1`, if any."""
        rows = self._progress.rows.get(scene.name, [])
        return rows[index].to(dtype) if index < len(rows) else None

    def _keep(self, outputs: Outputs) -> None:
        """Keep what later parts are computed from."""
        names = [scene.name for scene in self.scenes]
        if "visual.merger" in outputs:
            visual = [scene.name for scene in self.scenes if scene.visuals]
            levels = [[_onward(pair) for pair in pairs] for name, pairs in outputs.items() if "merger" in name]
            self._progress.rows = dict(zip(visual, map(list, zip(*levels, strict=True)), strict=True))
        elif "lm_head" not in outputs:
            [pairs] = outputs.values()
            self._progress.hidden = dict(zip(names, map(_onward, pairs), strict=True))


def _measure(
    outputs: Outputs, damages: Sequence[Damage], compute_wide: Callable[[], Outputs], started: float
) -> list[Part]:
    """Make parts of what was computed since `started`; float32 decides on bits that differ for no known reason."""
    dtype = next(iter(outputs.values()))[0][1].dtype
    found = {name: Difference.of(pairs) for name, pairs in outputs.items()}
    is_open = dtype != torch.float32 and not damages and any(each.num_different for each in found.values())
    exact = {name: Difference.of(pairs) for name, pairs in compute_wide().items()} if is_open else {}
    findings: dict[str, list[str]] = {name: [] for name in found}
    for damage in damages:
        name = next((name for name in found if f"{name}." in damage.tensor), next(iter(found)))
        findings[name].append(damage.sentence)
    seconds = (time.monotonic() - started) / len(found)
    return [
        Part(name, each, tolerance_of(dtype), exact.get(name, Difference()), seconds, tuple(findings[name]))
        for name, each in found.items()
    ]


def _widened(compute: Compute, tensors: Tensors) -> Outputs:
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    return compute(wide, wide)


def _onward(pair: Pair) -> Tensor:
    """Return the judge's values; ours where a damaged tensor of the checkpoint made the judge's infinite."""
    own, judged = pair
    return judged if judged.isfinite().all() else own


def count_equal(scene: str, tokens: Sequence[int], logits: Sequence[Tensor], tolerance: float) -> Greedy:
    """Compare tokens with the judge's logits `[V]` of each, which are float32 whatever the model's dtype."""
    for index, (token, row) in enumerate(zip(tokens, logits, strict=True)):
        if int(row.argmax()) != token:
            gap = float((row.max() - row[token]) / row.abs().max())
            return Greedy(scene, len(tokens), index, gap <= tolerance)
    return Greedy(scene, len(tokens), len(tokens))


def _compare_files(artifact: Artifact, checkpoint: LocalCheckpoint) -> Part:
    """Compare the files alongside the weights, those that an export makes as well, by their hashes."""
    own = {file.name: file.sha256 for file in artifact.manifest.side_files}
    theirs = {name: hashlib.sha256(content).hexdigest() for name, content in collect_side_files(checkpoint).items()}
    other = [name for name, digest in theirs.items() if own.get(name) != digest]
    return Part("files", findings=tuple(f"{name} is not the checkpoint's" for name in other))
