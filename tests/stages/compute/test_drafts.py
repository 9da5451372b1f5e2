"""Segments that end in drafts: an answer for each token that may be the last one known, and KV that is taken back."""

from __future__ import annotations

import pytest
import torch

from broker_pipeline.errors import KVPositionError, NonFiniteLogitsError
from broker_pipeline.messages.activation import Segment, SessionOpen, SharedPrefix
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from stages.cached_heads import KVDtype
from stages.compute.microbatch import Microbatch, StageOutput
from stages.compute.stage_compute import StageCompute
from stages.qwen3_vl.positions import decode_positions
from tests.kit.models.transformers_oracle import FP32, stages_of

PROMPT = [5, 9, 17, 33]
VARIANTS = (FP32[0], FP32[3])
pytestmark = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def opened(variant, kv_dtype: KVDtype = "auto", **sampling: object) -> StageCompute:
    """A stage that has the prompt's KV."""
    (compute,) = stages_of(variant, capacity=64, kv_dtype=kv_dtype)
    settings = SamplingSettings(**sampling)
    compute.open(
        SessionOpen(session="a", attempt=1, num_kv_tokens=32, num_prompt_tokens=4, sampling=settings),
        PROMPT if settings.needs_history else (),
    )
    return compute


def step(
    compute: StageCompute, start: int, tokens: list[int], num_drafts: int = 0, *, session: str = "a"
) -> StageOutput:
    segment = Segment(
        session=session, attempt=1, start=start, count=len(tokens), wants_token=True, num_drafts=num_drafts
    )
    ids = torch.tensor(tokens, dtype=torch.int32)
    return compute.run(Microbatch((segment,), decode_positions(start, len(tokens), 0), token_ids=ids))


def said(output: StageOutput) -> list[tuple[int, int]]:
    assert not output.failures
    return [(token.position, token.token_id) for token in output.tokens]


def alone(variant, num_tokens: int, **sampling: object) -> list[int]:
    """What the stage says, token by token."""
    compute = opened(variant, **sampling)
    tokens = [step(compute, 0, PROMPT).tokens[0].token_id]
    while len(tokens) < num_tokens:
        tokens.append(step(compute, 3 + len(tokens), tokens[-1:]).tokens[0].token_id)
    return tokens


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3, "seed": 7}], ids=["greedy", "sampled"])
def test_what_follows_right_drafts_is_what_would_have_been_said(variant, sampling) -> None:
    right = alone(variant, 6, **sampling)
    compute = opened(variant, **sampling)
    step(compute, 0, PROMPT)
    output = step(compute, 4, right[:4], num_drafts=3)
    assert said(output) == [(5, right[1]), (6, right[2]), (7, right[3]), (8, right[4])]
    assert said(step(compute, 8, right[4:5])) == [(9, right[5])]


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_wrong_drafts_leave_no_trace(variant, kv_dtype) -> None:
    right = alone(variant, 4, kv_dtype=kv_dtype)
    wrong = [(token + 1) % 100 for token in right]
    compute = opened(variant, kv_dtype)
    step(compute, 0, PROMPT)
    assert said(step(compute, 4, [right[0], *wrong[1:4]], num_drafts=3))[0] == (5, right[1])
    assert said(step(compute, 5, [right[1], right[2], wrong[3]], num_drafts=2))[:2] == [(6, right[2]), (7, right[3])]
    assert compute.kv.settled_length(("a", 1)) == 6


@pytest.mark.parametrize("num_right", [0, 2, 3])
def test_of_drafts_those_that_were_right_are_kept_for_others(variant, num_right) -> None:
    """A stage does not know which were: how many it is asked to keep says so."""
    right = alone(variant, 6)
    drafts = [token if index < num_right else (token + 1) % 100 for index, token in enumerate(right[1:4])]
    compute = opened(variant)
    step(compute, 0, PROMPT)
    assert (4 + num_right + 1, right[num_right + 1]) in said(step(compute, 4, [right[0], *drafts], num_drafts=3))
    num_kept = 5 + num_right
    compute.close("a", 1, num_kept_tokens=num_kept)
    assert compute.kv.settled_length(("a", 1)) == compute.kv.reserved_tokens == compute.num_kept_tokens == num_kept
    prefix = SharedPrefix(session="a", attempt=1, num_tokens=num_kept)
    sampling = SamplingSettings()
    compute.open(
        SessionOpen(session="b", attempt=1, num_kv_tokens=32, num_prompt_tokens=10, sampling=sampling, prefix=prefix)
    )
    assert said(step(compute, num_kept, [right[num_right + 1]], session="b")) == [(num_kept + 1, right[num_right + 2])]


def test_a_repeat_is_computed_once_and_a_gap_is_refused(variant) -> None:
    compute = opened(variant)
    step(compute, 0, PROMPT)
    first = step(compute, 4, [1, 2, 3], num_drafts=2)
    assert len(first.tokens) == 3
    assert len(step(compute, 4, [1, 2, 3], num_drafts=2).repeats) == 1
    step(compute, 5, [4])
    assert len(step(compute, 4, [1, 2, 3], num_drafts=2).repeats) == 1, "it comes late"
    (failed,) = step(compute, 7, [5]).failures
    assert isinstance(failed[1], KVPositionError)
    assert len(step(compute, 6, [5]).tokens) == 1


def test_a_sampler_that_needs_all_tokens_before_says_one(variant) -> None:
    """No conductor asks for that; its answer would be right all the same."""
    right = alone(variant, 2, repetition_penalty=1.5)
    compute = opened(variant, repetition_penalty=1.5)
    step(compute, 0, PROMPT)
    assert said(step(compute, 4, [right[0], 2, 3], num_drafts=2)) == [(5, right[1])]


def test_log_probabilities_come_with_each_token(variant) -> None:
    compute = opened(variant, logprobs=2)
    step(compute, 0, PROMPT)
    tokens: tuple[SampledToken, ...] = step(compute, 4, [1, 2, 3], num_drafts=2).tokens
    assert [len(token.top) for token in tokens] == [2, 2, 2]
    assert all(token.logprob == token.top[0].logprob for token in tokens)


def test_numbers_that_are_none_behind_a_draft_fail_nobody(variant) -> None:
    """A wrong draft may lead anywhere; only what is behind the token that is known counts for the session."""
    for num_healthy, failure in ((2, None), (0, NonFiniteLogitsError)):
        compute = stages_of(variant, (3,), capacity=64)[1]
        compute.open(
            SessionOpen(session="a", attempt=1, num_kv_tokens=32, num_prompt_tokens=4, sampling=SamplingSettings())
        )
        hidden = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
        hidden[num_healthy] = float("nan")
        segment = Segment(session="a", attempt=1, start=0, count=4, wants_token=True, num_drafts=3)
        output = compute.run(Microbatch((segment,), decode_positions(0, 4, 0), hidden=hidden))
        assert [token.position for token in output.tokens] == list(range(1, 1 + num_healthy))
        assert [type(error) for _, error in output.failures] == ([failure] if failure else [])
