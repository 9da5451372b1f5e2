"""Plans for the published sizes, from their configurations alone, against figures counted from the hub's files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from broker_pipeline.artifact_manifest import block_file
from export.plan import plan_export
from export.source.shard import SourceTensor
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import EMBED_TOKENS, LM_HEAD, model_shapes

CONFIGS = Path(__file__).parents[1] / "fixtures" / "hf-configs"


def hub_checkpoint(member: str) -> SimpleNamespace:
    """The headers of a hub checkpoint: experts turned, everything bfloat16."""
    config_json = (CONFIGS / member / "config.json").read_bytes()
    tensors = {
        name: SourceTensor(name, "shard", "BF16", (shape[0], shape[2], shape[1]) if ".experts." in name else shape)
        for name, shape in model_shapes(ModelConfig.from_json(config_json)).items()
    }
    return SimpleNamespace(config_json=config_json, tensors=tensors)


@pytest.mark.parametrize(
    ("member", "num_tensors", "total_bytes", "block_bytes"),
    [
        ("2B", 625, 4_255_064_064, 100_672_000),
        ("4B", 713, 8_875_631_616, 201_861_632),
        ("8B", 750, 17_534_247_392, 385_892_864),
        ("32B", 1058, 66_714_780_128, 975_196_672),
        ("30B-A3B", 882, 62_141_508_064, 1_246_241_280),
        ("235B-A22B", 1388, 471_340_045_792, 4_975_510_016),
    ],
)
def test_every_published_size_is_planned_whole(member, num_tensors, total_bytes, block_bytes):
    plan = plan_export(hub_checkpoint(member), dtype=None, expert_layout="auto")
    stored = {file.name: file.stored for file in plan.files}
    assert sum(len(tensors) for tensors in stored.values()) == num_tensors
    assert sum(tensor.size_bytes for tensors in stored.values() for tensor in tensors) == total_bytes
    for block in range(plan.num_blocks):
        assert sum(tensor.size_bytes for tensor in stored[block_file(block)]) == block_bytes
    assert plan.has_tied_head == (member in {"2B", "4B"})
    assert (LM_HEAD in {t.name for t in stored["head.safetensors"]}) != plan.has_tied_head
    assert [t.name for t in stored["embed.safetensors"]] == [EMBED_TOKENS]
    turned = {tensor.name for file in plan.files for tensor in file.tensors if tensor.transposed}
    assert len(turned) == (2 * plan.num_blocks if "-A" in member else 0)
