from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker_pipeline.messages.activation import Segment, SessionOpen
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from stages.artifact import Artifact
from stages.compute.loading import load_stage, stage_tensor_names
from stages.compute.microbatch import Microbatch
from stages.qwen3_vl.tensors import model_shapes
from trials.bench.in_process.transformers_generate import build_model
from trials.bench.shape_artifact import write_shape_artifact

pytest.importorskip("transformers")
CPU = torch.device("cpu")


def test_transformers_gets_the_same_random_weights_and_says_the_same(tmp_path: Path) -> None:
    artifact = Artifact.open(write_shape_artifact(tmp_path, "tiny"))
    model = build_model(artifact, CPU)
    stored, expected = model.state_dict(), artifact.load(model_shapes(artifact.config))
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    ids = torch.arange(7, 27, dtype=torch.int32)
    with torch.inference_mode():
        generated = model.generate(ids[None].long(), do_sample=False, max_new_tokens=6, min_new_tokens=6)[0, 20:]
    assert generated.tolist() == _ours(artifact, ids, num_tokens=6)


def _ours(artifact: Artifact, ids: torch.Tensor, num_tokens: int) -> list[int]:
    config = artifact.config
    blocks = BlockRange(start=0, stop=config.text.num_layers)
    tensors = artifact.load(stage_tensor_names(config, 0, blocks.stop))
    stage = load_stage(config, blocks, tensors, kv_capacity_tokens=64)
    stage.open(
        SessionOpen(session="s", attempt=1, num_kv_tokens=64, num_prompt_tokens=len(ids), sampling=SamplingSettings())
    )
    said: list[int] = []
    start, feed = 0, ids
    while len(said) < num_tokens:
        positions = torch.arange(start, start + len(feed), dtype=torch.int32).expand(3, -1)
        segment = Segment(session="s", attempt=1, start=start, count=len(feed), wants_token=True)
        said.append(stage.run(Microbatch((segment,), positions, token_ids=feed)).tokens[0].token_id)
        start, feed = start + len(feed), torch.tensor(said[-1:], dtype=torch.int32)
    return said
