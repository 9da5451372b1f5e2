"""`--deterministic` at published sizes on a GPU: hidden states have the same bits in any company and however cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.workers import BlockRange
from export.synthetic.shapes import shape_config
from stages.cached_heads import KVDtype
from stages.compute.fused.decoder import FusedDecoder
from stages.compute.loading import load_stage, stage_tensor_names
from stages.compute.microbatch import Microbatch
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.qwen3_vl.tensors import is_fp8_matrix
from stages.random_weights import DrawnTensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NUM_TOKENS = 700
CASES = [
    *(("8B", False, "auto"), ("8B", True, "auto"), ("8B", True, "fp8"), ("30B-A3B", False, "auto")),
    *(("30B-A3B", True, "auto"), ("2B", False, "auto"), ("2B", False, "fp8")),
]


def layers(shape: str, *, in_fp8: bool, kv_dtype: KVDtype, max_step_sessions: int) -> StageCompute:
    """Layers 3 and 4 of a published shape, with random weights."""
    config, blocks, device = shape_config(shape), BlockRange(start=3, stop=5), torch.device("cuda")
    names = stage_tensor_names(config, blocks.start, blocks.stop)
    coded = [name for name in names if is_fp8_matrix(name)] if in_fp8 else []
    weights = DrawnTensors(names, device, torch.bfloat16, in_fp8=coded)
    options = ComputeOptions(
        "cuda",
        is_deterministic=True,
        kv_dtype=kv_dtype,
        max_batch_tokens=2048,
        max_step_sessions=max_step_sessions,
    )
    return load_stage(config, blocks, weights, kv_capacity_tokens=30_000, options=options)


@torch.inference_mode()
def states(stage: StageCompute, hidden: Tensor, cuts: list[int], num_others: int) -> Tensor:
    """Compute a session in pieces, each behind another one's prompt and before one token each of `num_others`."""
    own = torch.empty_like(hidden)
    stage.kv.reserve(("own", 1), NUM_TOKENS)
    others = [(f"other-{number}", 1) for number in range(num_others)]
    for key in others:
        stage.kv.reserve(key, 400)
        stage.kv.advance(key, 0, 200)
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, NUM_TOKENS], strict=True)):
        prompt = 3 + 37 * number if num_others else 0
        stage.kv.reserve(("prompt", number), max(prompt, 1))
        segments = [Segment(session="prompt", attempt=number, start=0, count=prompt)] if prompt else []
        segments.append(Segment(session="own", attempt=1, start=start, count=stop - start))
        segments += [Segment(session=name, attempt=1, start=200 + number, count=1) for name, _ in others]
        rows = torch.randn(prompt + stop - start + num_others, hidden.shape[1]).to(torch.bfloat16)
        rows[prompt : prompt + stop - start] = hidden[start:stop]
        positions = torch.cat([torch.arange(each.start, each.start + each.count) for each in segments]).int()
        found = stage.decoder.step(Microbatch(tuple(segments), positions.expand(3, -1), hidden=rows), None, ()).hidden
        assert found is not None
        own[start:stop] = found[prompt : prompt + stop - start].cpu()
        stage.kv.release(("prompt", number))
    for key in [("own", 1), *others]:
        stage.kv.release(key)
    return own


@pytest.mark.parametrize("max_step_sessions", [0, 64])
@pytest.mark.parametrize(("shape", "in_fp8", "kv_dtype"), CASES, ids=str)
def test_a_session_has_the_same_bits_in_any_company(
    shape: str, in_fp8: bool, kv_dtype: KVDtype, max_step_sessions: int
) -> None:
    stage = layers(shape, in_fp8=in_fp8, kv_dtype=kv_dtype, max_step_sessions=max_step_sessions)
    assert isinstance(stage.decoder, FusedDecoder)
    hidden = torch.randn(NUM_TOKENS, stage.config.text.hidden_size).to(torch.bfloat16)
    whole = states(stage, hidden, [], 0)
    one_by_one = [300, *range(301, 340), 500]
    for cuts, num_others in (([255, 256, 600], 0), ([64, 130, 699], 40), (one_by_one, 0), (one_by_one, 63)):
        assert torch.equal(states(stage, hidden, cuts, num_others), whole), (cuts, num_others)
