"""Stages of a tiny random model, for tests that need real computation but no broker."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from broker_pipeline import subjects
from broker_pipeline.messages.workers import BlockRange
from stages.compute.grammar.grammars import Grammars
from stages.compute.kv.capacity import KVRoom
from stages.compute.loading import load_stage, stage_tensor_names
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.qwen3_vl.config import ModelConfig
from stages.stage.envelope_checks import StageFacts
from tests.kit.models.tiny_models import tiny_checkpoint

FINGERPRINT = "f" * 64
PIPELINE = "main"


@cache
def tiny_config(*, moe: bool = False) -> ModelConfig:
    return ModelConfig.from_json(json.loads((_directory(moe=moe) / "config.json").read_bytes()))


@cache
def tiny_tensors(*, moe: bool = False) -> dict[str, Tensor]:
    return load_file(_directory(moe=moe) / "model.safetensors")


def _directory(*, moe: bool) -> Path:
    return tiny_checkpoint(moe=moe, expert_layout="runtime")


def tiny_stage(
    start: int, stop: int, *, kv_tokens: int = 256, visual_rows: VisualRowBuffer | None = None
) -> StageCompute:
    config, tensors = tiny_config(), tiny_tensors()
    own = {name: tensors[name] for name in stage_tensor_names(config, start, stop)}
    blocks = BlockRange(start=start, stop=stop)
    return load_stage(config, blocks, own, kv_capacity_tokens=kv_tokens, visual_rows=visual_rows)


def build_stages(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    cuts: Sequence[int] = (),
    *,
    kv_capacity_tokens: int | KVRoom = 4096,
    options: ComputeOptions | None = None,
    grammars: Grammars | None = None,
) -> list[StageCompute]:
    """Return the whole decoder as stages, cut before each layer of `cuts`; takes what it needs from all tensors."""
    bounds = [0, *cuts, config.text.num_layers]
    stages = []
    for start, stop in pairwise(bounds):
        own = {name: tensors[name] for name in stage_tensor_names(config, start, stop)}
        blocks = BlockRange(start=start, stop=stop)
        stage = load_stage(
            config, blocks, own, kv_capacity_tokens=kv_capacity_tokens, options=options, grammars=grammars
        )
        stages.append(stage)
    return stages


def work_subject(name: str) -> str:
    return subjects.work(subjects.worker_root("test", PIPELINE, "stage", name, "instance"))


def facts_of(compute: StageCompute, name: str, max_batch_tokens: int = 512) -> StageFacts:
    return StageFacts(
        worker=name,
        pipeline=PIPELINE,
        fingerprint=FINGERPRINT,
        subject=work_subject(name),
        is_first=compute.is_first,
        is_last=compute.is_last,
        hidden_size=compute.config.text.hidden_size,
        vocab_size=compute.config.text.vocab_size,
        dtype=torch.float32,
        max_batch_tokens=max_batch_tokens,
    )
