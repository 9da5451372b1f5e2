"""Whole pipelines of a tiny model, each service in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.cuts import parse_cut
from broker_pipeline.tools.local.plan import LocalSettings
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.models.transformers_oracle import Variant

NUM_LAYERS = 6
DENSE = Variant(moe=False, tied=True, dtype=torch.float32)
MOE = Variant(moe=True, tied=False, dtype=torch.float32)


def tiny_cluster(directory: Path, variant: Variant, cut: str, **changes: Any) -> LocalCluster:
    """Return a pipeline that is not started yet; `cut` lists the first layers of all stages but the first."""
    artifact = tiny_artifact(moe=variant.moe, tied=variant.tied, dtype=variant.dtype, expert_layout="runtime")
    settings = LocalSettings(
        model=artifact,
        stages=parse_cut(cut, NUM_LAYERS),
        data_dir=directory,
        device="cpu",
        num_threads=1,
        kv_tokens=2048,
        drain_s=2.0,
        start_timeout_s=90.0,
        **changes,
    )
    return LocalCluster(settings)
