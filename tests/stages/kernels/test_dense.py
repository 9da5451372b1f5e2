"""The dense decoder's kernels against their references, with the shapes of published models cut down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from export.synthetic.shapes import shape_config
from stages.cached_heads import HeadCodes
from stages.compute.sampling.logit_scan import CONSTANT, NOT_FINITE, scan_logits
from stages.kernels.activation import silu_mul
from stages.kernels.cache_entry import enter_cache
from stages.kernels.decode_attention import attend_decode_tokens, num_parts
from stages.kernels.invariant_attention import attend_invariant_tiles, attend_invariant_tokens
from stages.kernels.norms import add_rms_norm, rms_norm
from stages.kernels.sampling.logit_scan import scan
from stages.qwen3_vl.attention import AttentionPlan, AttentionSpan, EagerAttention
from stages.qwen3_vl.rope import TextRope, text_rotation
from stages.qwen3_vl.text import BlockWeights, MlpWeights, project_qkv
from stages.qwen3_vl.text import rms_norm as reference_rms_norm

DTYPES = [torch.float32, torch.bfloat16]


def _random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


def _equal(have: Tensor, want: Tensor) -> None:
    """Bit for bit on the GPU; the interpreter rounds to bf16 by cutting off."""
    if have.device.type == "cuda":
        assert torch.equal(have, want)
    else:
        torch.testing.assert_close(have.float(), want.float(), atol=0.05, rtol=0.02)


def _close(have: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(have.float(), want.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 192])
def test_rms_norm(device: torch.device, dtype: torch.dtype, width: int) -> None:
    x, weight = _random(5, width, device=device, dtype=dtype), _random(width, device=device, dtype=dtype)
    _close(rms_norm(x, weight, 1e-6, torch.empty_like(x)), reference_rms_norm(x, weight, 1e-6), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_adds_first(device: torch.device, dtype: torch.dtype) -> None:
    x, weight = _random(3, 96, device=device, dtype=dtype), _random(96, device=device, dtype=dtype)
    delta = _random(3, 96, device=device, dtype=dtype, seed=7)
    total, normed = add_rms_norm(x, delta, weight, 1e-6, torch.empty_like(x))
    _equal(total, x + delta)
    _close(normed, reference_rms_norm(x + delta, weight, 1e-6), dtype)


def test_add_rms_norm_sums_parts_in_order(device: torch.device) -> None:
    dtype = torch.bfloat16
    x, weight = _random(3, 64, device=device, dtype=dtype), _random(64, device=device, dtype=dtype)
    parts = _random(3, 4, 64, device=device, dtype=dtype, seed=3)
    total, _ = add_rms_norm(x, parts, weight, 1e-6, torch.empty_like(x))
    summed = torch.zeros_like(x)
    for index in range(4):
        summed = summed + parts[:, index]
    _equal(total, x + summed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(device: torch.device, dtype: torch.dtype) -> None:
    gate_up = _random(4, 2 * 160, device=device, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    _close(silu_mul(gate_up, torch.empty_like(gate)), F.silu(gate) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_enter_cache_norms_rotates_and_stores(device: torch.device, dtype: torch.dtype) -> None:
    config = replace(shape_config("tiny").text, num_heads=4, num_kv_heads=2)
    d, hidden, n = config.head_dim, config.hidden_size, 5
    sizes = {"q": config.num_heads * d, "k": config.num_kv_heads * d, "v": config.num_kv_heads * d}
    parts = {name: _random(size, hidden, device=device, dtype=dtype) for name, size in sizes.items()}
    norms = tuple(_random(d, device=device, dtype=dtype, seed=s) for s in (1, 2))
    ones = torch.ones(hidden, device=device, dtype=dtype)
    block = BlockWeights(ones, **parts, q_norm=norms[0], k_norm=norms[1], o=ones, post_attention_norm=ones,
                         mlp=MlpWeights(ones, ones, ones))  # fmt: skip
    x = _random(n, hidden, device=device, dtype=dtype, seed=5)
    positions = torch.randint(0, 50, (3, n), dtype=torch.int32).to(device)
    rotation = text_rotation(positions, TextRope.of(config, device), dtype)
    q, k, v = project_qkv(block, x, rotation, config)
    normed = reference_rms_norm(x, ones, config.rms_norm_eps)
    qkv = torch.cat([normed @ parts[name].T for name in "qkv"], dim=1).contiguous()
    keys, values = (torch.zeros(12, config.num_kv_heads, d, device=device, dtype=dtype) for _ in range(2))
    slots = torch.tensor([7, 0, 3, 11, 4], dtype=torch.int32, device=device)
    have = enter_cache(qkv, (norms[0], norms[1]), rotation, config.rms_norm_eps, keys, values, slots)
    _close(have, q, dtype)
    _close(keys[slots.long()], k, dtype)
    _close(values[slots.long()], v, dtype)
    untouched = [row for row in range(12) if row not in slots.tolist()]
    assert not keys[untouched].any()
    coded = [HeadCodes.of(torch.zeros_like(heads)) for heads in (keys, values)]
    _equal(enter_cache(qkv, (norms[0], norms[1]), rotation, config.rms_norm_eps, coded[0], coded[1], slots), have)
    for heads, codes in zip((keys, values), coded, strict=True):
        want = HeadCodes.of(heads)
        _equal(codes.scales, want.scales)
        _equal(codes.codes.view(torch.uint8), want.codes.view(torch.uint8))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter, about NaN
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_seen_in_codes(device: torch.device, bad: float) -> None:
    """By whoever looks at the token, and by nobody else."""
    d = 32
    qkv = _random(3, 4 * d, device=device, dtype=torch.float32)
    qkv[1, 3 * d + 5] = bad  # a value
    qkv[2, 2 * d + 5] = bad  # a key
    ones, slots = torch.ones(d, device=device), torch.arange(3, dtype=torch.int32, device=device)
    rotation = torch.ones(3, 1, d, device=device), torch.zeros(3, 1, d, device=device)
    keys, values = (HeadCodes.of(torch.zeros(3, 1, d, device=device)) for _ in range(2))
    q = enter_cache(qkv, (ones, ones), rotation, 1e-6, keys, values, slots)
    assert values.scales.isnan().flatten().tolist() == [False, True, False]
    assert keys.scales.isnan().flatten().tolist() == [False, False, True]
    for token in range(3):
        alone, tiled = torch.zeros_like(q), torch.zeros_like(q)
        first, start, one = (torch.tensor(each, dtype=torch.int32, device=device) for each in ([0, 1], [token, 0], [1]))
        attend_invariant_tokens(q, keys, values, first[:1], start[:1], one, out=alone)
        attend_invariant_tiles(q, keys, values, (first, start, one), out=tiled)
        assert bool(alone[0].isfinite().all()) == bool(tiled[0].isfinite().all()) == (token == 0)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (8, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_rows(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, parts: int) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter has no bf16 products")
    d, lengths, starts = 32, [1, 130, 64, 3], [400, 5, 200, 300]
    keys, values = (_random(448, kv_heads, d, device=device, dtype=dtype, seed=s) for s in (1, 2))
    q = _random(6, heads, d, device=device, dtype=dtype)
    rows = [5, 0, 2, 3]
    out = torch.full_like(q, float("nan"))
    where = [torch.tensor(each, dtype=torch.int32, device=device) for each in (rows, starts, lengths)]
    attend_decode_tokens(q, keys, values, *where, out=out, parts=parts)
    spans = [AttentionSpan(i, 1, start, length) for i, (start, length) in enumerate(zip(starts, lengths, strict=True))]
    want = EagerAttention().attend_cached(q[rows].float(), keys.float(), values.float(), AttentionPlan(spans, device))
    _close(out[rows], want, dtype)
    assert out[[1, 4]].isnan().all()


def test_attend_rows_of_length_zero_gives_zeros(device: torch.device) -> None:
    q = _random(2, 4, 32, device=device)
    keys = values = _random(64, 2, 32, device=device)
    rows, zero = (torch.tensor(each, dtype=torch.int32, device=device) for each in ([0, 1], [0, 0]))
    for parts in (1, 2):
        out = torch.full_like(q, float("nan"))
        attend_decode_tokens(q, keys, values, rows, zero, zero, out=out, parts=parts)
        assert not out.any()


def test_attend_rows_does_not_depend_on_the_other_rows(device: torch.device) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q = _random(8, 4, 32, device=device, dtype=dtype)
    keys, values = (_random(512, 2, 32, device=device, dtype=dtype, seed=s) for s in (1, 2))
    starts = torch.arange(8, dtype=torch.int32, device=device) * 50
    lengths = starts // 3 + 9
    rows = torch.arange(8, dtype=torch.int32, device=device)
    together, alone = torch.empty_like(q), torch.empty_like(q)
    attend_decode_tokens(q, keys, values, rows, starts, lengths, out=together, parts=4)
    attend_decode_tokens(q, keys, values, rows[3:4], starts[3:4], lengths[3:4], out=alone, parts=4)
    assert torch.equal(together[3], alone[3])


def test_num_parts_fills_the_gpu_and_no_more() -> None:
    assert num_parts(1, 8) == 32
    assert num_parts(32, 8) == 4
    assert num_parts(256, 8) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_scan_finds_the_first_of_the_best_and_rows_that_say_nothing(device: torch.device, dtype: torch.dtype) -> None:
    logits = _random(9, 20_000, device=device, dtype=dtype)
    logits[0, [9_000, 17_000, 8_500]] = 9.0
    logits[2, 15_000] = float("nan")
    logits[3, 1] = float("inf")
    logits[4] = 0.0
    logits[5] = -7.5
    logits[6] = 0.0
    logits[6, 19_999] = 0.5  # in the last, shorter chunk
    logits[7] = float("-inf")
    logits[8] = float("nan")
    expected = [8_500, int(logits[1].float().argmax()), NOT_FINITE, NOT_FINITE, CONSTANT, CONSTANT, 19_999]
    assert scan(logits).tolist() == [*expected, NOT_FINITE, NOT_FINITE]
    assert scan_logits(logits).greedy.tolist() == [*expected, NOT_FINITE, NOT_FINITE]


@pytest.mark.parametrize("width", [1, 8_191, 8_192, 8_193])
def test_scan_sees_a_row_of_one_number_in_any_number_of_chunks(device: torch.device, width: int) -> None:
    logits = torch.full((2, width), 3.0, device=device)
    logits[1, width // 2] = -3.0
    assert scan(logits)[0].item() == CONSTANT
    assert torch.equal(scan(logits), scan_logits(logits).greedy)
