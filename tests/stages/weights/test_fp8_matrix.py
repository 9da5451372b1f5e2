"""Matrices in FP8: how near they are, how they join, and stages that are loaded from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from broker_pipeline.errors import ArtifactError
from broker_pipeline.messages.workers import BlockRange
from stages.artifact import Artifact
from stages.compute.generate import Request, WholeModel
from stages.compute.loading import load_stage, stage_tensor_names
from stages.compute.options import ComputeOptions
from stages.qwen3_vl.tensors import is_fp8_matrix
from stages.random_weights import DrawnTensors
from stages.weights.fp8_matrix import Fp8Matrix, joined, quantise
from tests.kit.models.tiny_stages import tiny_config, tiny_tensors
from trials.bench.shape_artifact import write_shape_artifact


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    exponent=st.integers(-90, 90),
    seed=st.integers(0, 2**31),
)
def test_a_value_is_off_by_a_sixteenth_of_itself_or_a_step_of_its_block(rows, columns, exponent, seed) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    found = quantise(matrix)
    spread = found.scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    error = (found.dequantised(torch.float32) - matrix).abs()
    assert (error <= torch.maximum(matrix.abs() / 16, spread * 2.0**-10) * 1.0001).all()
    assert found.codes.float().abs().amax() == 448


def test_matrices_join_where_blocks_end_with_them() -> None:
    tall, flat = torch.randn(256, 200), torch.randn(40, 200)
    whole = joined([quantise(tall), quantise(flat)], torch.float32)
    assert isinstance(whole, Fp8Matrix)
    assert torch.equal(whole.codes.float(), quantise(torch.cat((tall, flat))).codes.float())
    cut = joined([quantise(flat), quantise(tall)], torch.bfloat16)
    assert isinstance(cut, Tensor)
    assert torch.equal(cut, torch.cat([quantise(part).dequantised(torch.bfloat16) for part in (flat, tall)]))
    mixed = joined([quantise(tall), flat], torch.float32)
    assert isinstance(mixed, Tensor)


@pytest.mark.parametrize("moe", [False, True])
def test_a_stage_on_a_cpu_computes_with_the_values(moe: bool) -> None:
    config = tiny_config(moe=moe)
    blocks = BlockRange(start=0, stop=config.text.num_layers)
    shapes = stage_tensor_names(config, 0, blocks.stop)
    drawn = DrawnTensors(
        shapes, torch.device("cpu"), torch.float32, in_fp8=[name for name in shapes if is_fp8_matrix(name)]
    )
    values = {
        name: weight.dequantised(torch.float32) if isinstance(weight, Fp8Matrix) else weight
        for name, weight in drawn.items()
    }
    logits = []
    for tensors in (drawn, values):
        stage = load_stage(config, blocks, tensors, kv_capacity_tokens=64)
        [tokens] = WholeModel([stage]).generate([Request("a", tuple(range(5, 17)), max_tokens=6)])
        logits.append([token.token_id for token in tokens])
    assert logits[0] == logits[1]


def test_a_matrix_of_another_shape_is_refused() -> None:
    config = tiny_config()
    shapes = stage_tensor_names(config, 1, 2)
    tensors = {name: tiny_tensors()[name] for name in shapes}
    name = next(name for name in shapes if name.endswith("o_proj.weight"))
    with pytest.raises(ArtifactError, match=r"o_proj\.weight \[3, 5\] \(expected"):
        load_stage(
            config,
            BlockRange(start=1, stop=2),
            tensors | {name: quantise(torch.ones(3, 5))},
            kv_capacity_tokens=8,
            options=ComputeOptions(),
        )


def test_drawn_codes_are_the_same_in_every_process_and_as_large_as_values(tmp_path) -> None:
    artifact = Artifact.open(write_shape_artifact(tmp_path / "a", "tiny", in_fp8=True))
    names = [name for name in stage_tensor_names(artifact.config, 0, 2) if is_fp8_matrix(name)]
    with artifact.reading(names) as tensors:
        found = dict(tensors)
    with artifact.reading(names[3:4]) as tensors:
        again = tensors[names[3]]
    assert isinstance(again, Fp8Matrix)
    assert torch.equal(again.dequantised(torch.float32), found[names[3]].dequantised(torch.float32))
    plain = Artifact.open(write_shape_artifact(tmp_path / "b", "tiny")).load(names)
    for name in names:
        ratio = float(found[name].dequantised(torch.float32).std() / plain[name].std())
        assert 0.5 < ratio < 1.6, name  # a few scales, each of half to one and a half
