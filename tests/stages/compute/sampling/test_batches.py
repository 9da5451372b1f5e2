"""Rows sampled together: each as if it were alone, as the plainest code has it, and without waiting for the device."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from broker_pipeline.errors import ConstantLogitsError, KVPositionError, NonFiniteLogitsError
from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.logit_scan import scan_logits
from stages.compute.sampling.sampler import Choice, SessionSampler, launch_sampling
from tests.kit.device_waits import no_device_waits
from tests.kit.models import sampling_oracle as oracle
from tests.kit.models.samplers import sample

NUM_PROMPT = 5

QWEN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": 3},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.5, "frequency_penalty": -0.3, "logprobs": 0},
    QWEN,
    QWEN | {"min_p": 0.1, "logprobs": 5},
    QWEN | {"repetition_penalty": 1.2, "logprobs": 1},
    {"temperature": 1.0},
    {"temperature": 1.3, "top_p": 0.93, "logprobs": 20},
    {"temperature": 1.0, "min_p": 0.02, "presence_penalty": 0.7},
    {"temperature": 0.9, "top_k": 300},
    {"temperature": 2.0, "top_k": 1},
    {"temperature": 1.1, "top_k": 3, "top_p": 0.05},
    {"temperature": 1.5, "top_k": 250, "frequency_penalty": 0.4},
    {"logit_bias": {3: 2.5, 30: -100.0}},
    {"min_tokens": 10, "end_token_ids": (1, 7)},
    {"bad_word_ids": ((2,), (3, 4), (5, 6, 7))},
    {"no_repeat_ngram_size": 1, "logprobs": 3},
    {"temperature": 1.0, "no_repeat_ngram_size": 2, "min_tokens": 40, "end_token_ids": (9,), "logprobs": 20},
    {"temperature": 1.2, "min_p": 0.01, "bad_word_ids": tuple((n, m) for n in range(30) for m in range(0, 30, 2))},
    {"temperature": 1.0, "top_k": 300, "logit_bias": dict.fromkeys(range(0, 36, 3), 1.5)},
    QWEN | {"repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "logit_bias": {0: 5.0}, "bad_word_ids": ((0,),)},
)


def logits_of(num_rows: int, vocab: int, seed: int, step: float = 0.0) -> torch.Tensor:
    """Random rows; `step` rounds them, so that many tokens tie."""
    logits = 3 * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed))
    return (logits / step).round() * step if step else logits


class Row:
    """One session of a batch, with what the oracle needs."""

    def __init__(self, chance: random.Random, vocab: int, **settings: Any) -> None:
        self.settings = SamplingSettings(seed=chance.randrange(2**40), **settings)
        self.history = [chance.randrange(vocab) for _ in range(NUM_PROMPT + chance.randrange(30))]

    def sampler(self) -> SessionSampler:
        return SessionSampler(self.settings, self.history, NUM_PROMPT)

    @property
    def position(self) -> int:
        return len(self.history)


def rows_of(seed: int, count: int, vocab: int) -> list[Row]:
    chance = random.Random(seed)
    return [Row(chance, vocab, **chance.choice(KINDS)) for _ in range(count)]


def sampled(logits: torch.Tensor, rows: Sequence[Row]) -> list[Any]:
    return sample(logits, [row.sampler() for row in rows], [row.position for row in rows])


def check_against_oracle(outcome: Any, logits: torch.Tensor, row: Row) -> None:
    scores = oracle.adjusted(logits, row.settings, row.history, NUM_PROMPT)
    assert isinstance(outcome, Choice)
    assert outcome.token_id == oracle.choice(scores, row.settings, row.position)
    if row.settings.logprobs is None:
        assert (outcome.logprob, outcome.top) == (None, ())
        return
    logprobs = oracle.logprobs(scores)
    best = oracle.ranked(scores)[: row.settings.logprobs]
    assert outcome.logprob == pytest.approx(logprobs[outcome.token_id], abs=2e-6)
    assert [top.token_id for top in outcome.top] == best
    assert [top.logprob for top in outcome.top] == pytest.approx([logprobs[token] for token in best], abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("vocab", "step"), [(37, 0.0), (128, 0.5), (300, 0.0), (1000, 1.0), (1000, 0.0)])
def test_every_row_of_a_mixed_batch_is_what_the_plainest_code_chooses(vocab, step, dtype):
    for seed in range(4):
        rows = rows_of(seed, 30, vocab)
        logits = logits_of(30, vocab, seed, step).to(dtype)
        for outcome, row_logits, row in zip(sampled(logits, rows), logits, rows, strict=True):
            check_against_oracle(outcome, row_logits, row)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_row_alone_is_what_the_plainest_code_chooses(kind):
    chance = random.Random(str(kind))
    for seed in range(10):
        row, logits = Row(chance, 500, **kind), logits_of(1, 500, seed)
        check_against_oracle(sampled(logits, [row])[0], logits[0], row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_a_row_gets_the_same_outcome_in_every_company(step, dtype):
    """To the last bit, log-probabilities included."""
    rows, logits = rows_of(7, 90, 700), logits_of(90, 700, 7, step).to(dtype)
    alone = [sampled(logits[place, None], [row])[0] for place, row in enumerate(rows)]
    chance = random.Random(8)
    for size in (2, 3, 17, 60, 90):
        picked = chance.sample(range(90), size)
        assert sampled(logits[picked], [rows[place] for place in picked]) == [alone[place] for place in picked]


@pytest.mark.parametrize("num_rows", [20, 40])
def test_more_rows_than_are_sorted_or_reported_together(num_rows):
    rows = [Row(random.Random(seed), 200, temperature=1.0, logprobs=2) for seed in range(4 * num_rows)]
    logits = logits_of(4 * num_rows, 200, 1)
    for outcome, row_logits, row in zip(sampled(logits, rows), logits, rows, strict=True):
        check_against_oracle(outcome, row_logits, row)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 136])
def test_rows_of_every_kind_fail_alone_when_they_are_not_finite(bad, place):
    rows = [Row(random.Random(seed), 137, **kind) for seed, kind in enumerate(KINDS)]
    logits = logits_of(len(rows), 137, 3)
    expected = sampled(logits, rows)
    for broken in range(len(rows)):
        spoilt = logits.clone()
        spoilt[broken, place] = bad
        found = sampled(spoilt, rows)
        assert isinstance(found.pop(broken), NonFiniteLogitsError)
        assert found == expected[:broken] + expected[broken + 1 :]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rows_of_nothing_but_nan_fail(sign):
    rows = [Row(random.Random(seed), 137, **kind) for seed, kind in enumerate(KINDS)]
    nan = torch.tensor(math.nan).copysign(torch.tensor(sign))
    found = sampled(nan.expand(len(rows), 137).clone(), rows)
    assert all(isinstance(outcome, NonFiniteLogitsError) for outcome in found)


def test_a_row_with_nan_of_both_signs_fails_without_reaching_beyond_the_vocabulary():
    """Ranked: NaN, 36 numbers, 55 places that fill up the last group of 64, 100 negative NaN."""
    logits = logits_of(2, 137, 0)
    logits[1, 36:] = torch.tensor(math.nan).copysign(torch.tensor(-1.0))
    logits[1, 136] = math.nan
    rows = [Row(random.Random(seed), 137, **QWEN, logprobs=2) for seed in range(2)]
    found = sampled(logits, rows)
    check_against_oracle(found[0], logits[0], rows[0])
    assert isinstance(found[1], NonFiniteLogitsError)


@pytest.mark.parametrize("number", [0.0, -4.25])
def test_rows_of_every_kind_fail_alone_when_all_their_logits_are_one_number(number):
    rows = [Row(random.Random(seed), 137, **kind) for seed, kind in enumerate(KINDS)]
    logits = logits_of(len(rows), 137, 3)
    expected = sampled(logits, rows)
    for broken in range(len(rows)):
        spoilt = logits.clone()
        spoilt[broken] = number
        found = sampled(spoilt, rows)
        failed = found.pop(broken)
        assert isinstance(failed, ConstantLogitsError)
        assert "all the same number" in failed.message
        assert found == expected[:broken] + expected[broken + 1 :]


def test_a_penalty_that_overflows_fails_its_row_alone():
    logits = logits_of(3, 50, 0)
    logits[1, 4] = 3e38
    rows = [Row(random.Random(seed), 50, repetition_penalty=scale) for seed, scale in enumerate((1.1, 1e-3, 1.1))]
    rows[1].history[0] = 4
    found = sampled(logits, rows)
    assert isinstance(found[1], NonFiniteLogitsError)
    assert isinstance(found[0], Choice)
    assert isinstance(found[2], Choice)


def test_an_incomplete_history_fails_its_row_alone():
    rows, logits = rows_of(3, 20, 80), logits_of(20, 80, 3)
    short = next(place for place, row in enumerate(rows) if row.settings.needs_history)
    samplers, positions = [row.sampler() for row in rows], [row.position for row in rows]
    positions[short] += 1
    found = sample(logits, samplers, positions)
    expected = sampled(logits, rows)
    assert isinstance(found.pop(short), KVPositionError)
    expected.pop(short)
    assert found == expected


def test_adjustments_follow_the_history_of_each_session_step_by_step():
    rows = [Row(random.Random(seed), 90, **kind) for seed, kind in enumerate(KINDS)]
    samplers = [row.sampler() for row in rows]
    for step in range(40):
        logits = logits_of(len(rows), 90, step)
        outcomes = sample(logits, samplers, [row.position for row in rows])
        for outcome, row_logits, row in zip(outcomes, logits, rows, strict=True):
            check_against_oracle(outcome, row_logits, row)
            assert isinstance(outcome, Choice)
            row.history.append(outcome.token_id)


def test_logits_stay_as_they_are():
    rows, logits = rows_of(1, 30, 100), logits_of(30, 100, 1)
    before = logits.clone()
    sampled(logits, rows)
    assert torch.equal(logits, before)


def test_no_rows_are_no_choices():
    assert sample(torch.empty(0, 10), [], []) == []


# --- work that waits for nothing -------------------------------------------------------------------------------------


class OperationCount(TorchDispatchMode):
    """Counts the operations that compute something."""

    num_operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_operations += not func.is_view
        return func(*args, **(kwargs or {}))


def count_operations(rows: Sequence[Row], vocab: int = 256) -> int:
    logits = logits_of(len(rows), vocab, 0)
    samplers, positions, scan = [row.sampler() for row in rows], [row.position for row in rows], scan_logits(logits)
    with OperationCount() as counted:
        launch_sampling(logits, samplers, positions, scan)
    return counted.num_operations


def test_a_launch_reads_nothing_back():
    """Tensors on the meta device hold no numbers: whatever had to look at one would fail."""
    rows = [Row(random.Random(seed), 1000, **kind) for seed, kind in enumerate(KINDS * 2)]
    logits = torch.empty(len(rows), 1000, device="meta")
    scan = scan_logits(logits)
    pending = launch_sampling(logits, [row.sampler() for row in rows], [row.position for row in rows], scan)
    assert pending.results.packed.device.type == "meta"


def test_greedy_rows_take_what_the_scan_says():
    assert count_operations([Row(random.Random(0), 256)] * 64) <= 2


EVERYTHING = QWEN | {"presence_penalty": 1.5, "logit_bias": {3: 1.0}, "no_repeat_ngram_size": 1}


@pytest.mark.parametrize(
    ("kind", "limit"), [(QWEN, 60), (QWEN | {"presence_penalty": 1.5}, 105), (EVERYTHING, 120)], ids=str
)
def test_the_number_of_operations_does_not_grow_with_the_rows(kind, limit):
    few, many = ([Row(random.Random(0), 256, **kind)] * count for count in (2, 64))
    assert count_operations(few) == count_operations(many) <= limit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("by_kernels", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gpu_chooses_what_the_cpu_chooses_and_never_waits(dtype, by_kernels):
    rows, logits = rows_of(11, 90, 5000), logits_of(90, 5000, 11).to(dtype)
    expected = sampled(logits, rows)
    positions, on_gpu = [row.position for row in rows], logits.cuda()

    def launched():
        scan = dataclasses.replace(scan_logits(on_gpu), is_by_kernels=by_kernels)
        return launch_sampling(on_gpu, [row.sampler() for row in rows], positions, scan)

    launched()  # loads kernels
    torch.cuda.synchronize()
    with no_device_waits():
        pending = launched()
    torch.cuda.synchronize()
    found = pending.collect()
    assert [choice.token_id for choice in found] == [choice.token_id for choice in expected]
    assert [choice.logprob for choice in found] == pytest.approx([choice.logprob for choice in expected], abs=2e-6)
    assert [choice.top for choice in found if choice.logprob is None] == [()] * sum(c.logprob is None for c in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_rows_than_kernels_draw_from_together_draw_what_the_cpu_draws():
    rows = [Row(random.Random(seed), 700, temperature=1.3, top_p=0.95) for seed in range(300)]
    logits, positions = logits_of(300, 700, 3).bfloat16(), [row.position for row in rows]
    on_gpu = logits.cuda()
    scan = dataclasses.replace(scan_logits(on_gpu), is_by_kernels=True)
    pending = launch_sampling(on_gpu, [row.sampler() for row in rows], positions, scan)
    torch.cuda.synchronize()
    assert [choice.token_id for choice in pending.collect()] == [each.token_id for each in sampled(logits, rows)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_wait_is_found_and_leaves_no_trace():
    number = torch.ones(1, device="cuda")
    with pytest.raises(RuntimeError, match="synchronizing"), no_device_waits():
        number.item()
    assert torch.cuda.get_sync_debug_mode() == 0
    assert number.item() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_row_gets_the_same_outcome_in_every_company_on_a_gpu():
    rows, logits = rows_of(7, 90, 700), logits_of(90, 700, 7).to("cuda", torch.bfloat16)
    alone = [sampled(logits[place, None], [row])[0] for place, row in enumerate(rows)]
    assert sampled(logits, rows) == alone
