"""Random checkpoints whose experts are stored as one of the layouts has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from export.synthetic import random_checkpoint

ExpertLayout = Literal["hub", "runtime", "per_expert"]


def write_random_checkpoint(directory: Path, *, expert_layout: ExpertLayout = "hub", **options: Any) -> Path:
    """Write what `export.synthetic.random_checkpoint` does with `options`, and store its experts anew.

    As the hub does (`[E, H, 2I]`), as transformers 5 saves (`[E, 2I, H]`), or one matrix per expert and projection.
    """
    path = random_checkpoint.write_random_checkpoint(directory, **options) / "model.safetensors"
    if options.get("moe") and expert_layout != "runtime":
        stored = {name: part for each in load_file(path).items() for name, part in _stored(*each, expert_layout)}
        save_file(stored, path, metadata={"format": "pt"})
    return directory


def _stored(name: str, tensor: Tensor, layout: ExpertLayout) -> list[tuple[str, Tensor]]:
    if ".mlp.experts." not in name:
        return [(name, tensor)]
    if layout == "hub":
        return [(name, tensor.transpose(1, 2).contiguous())]
    prefix, projection = name.rsplit(".", 1)
    parts = {"down_proj": tensor}
    if projection == "gate_up_proj":
        gate, up = tensor.chunk(2, dim=1)
        parts = {"gate_proj": gate, "up_proj": up}
    return [
        (f"{prefix}.{expert}.{part}.weight", matrices[expert].contiguous())
        for part, matrices in parts.items()
        for expert in range(tensor.shape[0])
    ]
