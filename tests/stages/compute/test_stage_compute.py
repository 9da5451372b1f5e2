"""A stage's behaviour: sessions, repeats, gaps, rows, and failures that stay with their session."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import torch

from broker_pipeline.errors import (
    ComputeError,
    GrammarError,
    KVCapacityError,
    KVPositionError,
    MalformedEnvelopeError,
    NonFiniteLogitsError,
    SessionUnknownError,
    StaleAttemptError,
    TensorMismatchError,
    VisualRowsMissingError,
)
from broker_pipeline.messages.activation import Segment, SessionOpen, SharedPrefix, VisualSpan
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.structured_outputs import GrammarSettings
from stages.cached_heads import KVDtype
from stages.compute.generate import WholeModel
from stages.compute.microbatch import Microbatch, StageOutput
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.compute.visual_row_buffer import VisualRows
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.positions import decode_positions
from tests.kit.models.copying import decoded_second
from tests.kit.models.growing import decoded
from tests.kit.models.tiny_stages import build_stages
from tests.kit.models.transformers_oracle import FP32, config_of, request_of, scene, stages_of, tensors_of

VARIANT = FP32[0]
HIDDEN = 64


def stage(capacity: int = 256, cuts: tuple[int, ...] = (), index: int = 0, kv_dtype: KVDtype = "auto") -> StageCompute:
    return stages_of(VARIANT, cuts, capacity=capacity, kv_dtype=kv_dtype)[index]


def opening(session: str, tokens: int = 32, attempt: int = 1, **sampling) -> SessionOpen:
    return SessionOpen(
        session=session,
        attempt=attempt,
        num_kv_tokens=tokens,
        num_prompt_tokens=4,
        sampling=SamplingSettings(**sampling),
    )


def segment(session: str, start: int, count: int, *, wants_token: bool = True, attempt: int = 1, visual=()):
    return Segment(session=session, attempt=attempt, start=start, count=count, wants_token=wants_token, visual=visual)


def tokens_of(part: Segment) -> torch.Tensor:
    """Token ids that depend on session and index only."""
    return torch.tensor(
        [(ord(part.session[0]) * 7 + i * 13) % 256 for i in range(part.start, part.start + part.count)],
        dtype=torch.int32,
    )


def batch(*segments: Segment) -> Microbatch:
    return Microbatch(
        segments=segments,
        positions=torch.cat([decode_positions(s.start, s.count, 0) for s in segments], dim=1),
        token_ids=torch.cat([tokens_of(s) for s in segments]),
    )


def run(compute: StageCompute, *segments: Segment) -> StageOutput:
    return compute.run(batch(*segments))


def chosen(output: StageOutput) -> dict[str, int]:
    return {token.session: token.token_id for token in output.tokens}


# --- sessions --------------------------------------------------------------------------------------------------------


def test_prefill_and_decode_share_a_microbatch():
    compute = stage()
    for session in "ab":
        compute.open(opening(session))
    run(compute, segment("a", 0, 5))
    mixed = run(compute, segment("a", 5, 1), segment("b", 0, 7))
    assert [(t.session, t.position) for t in mixed.tokens] == [("a", 6), ("b", 7)]
    apart = stage()
    for session in "ab":
        apart.open(opening(session))
    run(apart, segment("a", 0, 5))
    assert chosen(mixed) == chosen(run(apart, segment("a", 5, 1))) | chosen(run(apart, segment("b", 0, 7)))


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize(("step", "room"), [(1, 51), (3, 51), (2, 256)])
def test_kv_that_grows_and_moves_gives_the_same_bits(step, room, kv_dtype):
    whole = decoded(stage(51, kv_dtype=kv_dtype), 12)
    assert decoded(stage(room, kv_dtype=kv_dtype), 12, step) == whole


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_a_copied_prefix_gives_the_bits_of_a_computed_one(kv_dtype):
    compute = stage(kv_dtype=kv_dtype)
    assert decoded_second(compute, is_copied=True) == decoded_second(compute, is_copied=False)


def test_a_kept_prefix_gives_the_bits_of_a_computed_one():
    compute = stage()
    kept = decoded_second(compute, is_copied=True, is_kept=True)
    assert kept == decoded_second(compute, is_copied=False)
    assert compute.kv.reserved_tokens == compute.num_kept_tokens == 0


def test_of_what_is_kept_the_rest_is_free_and_a_second_close_frees_all():
    compute = stage()
    compute.open(opening("a", 32))
    run(compute, segment("a", 0, 8))
    compute.close("a", 1, num_kept_tokens=6)
    for _ in range(2):  # a message may come twice
        assert (compute.num_open, compute.num_kept_tokens, compute.kv.reserved_tokens) == (0, 6, 6)
        compute.close("a", 1, num_kept_tokens=6)
    begin_with(compute, 6)
    compute.close("a", 1)
    assert (compute.num_open, compute.num_kept_tokens, compute.kv.reserved_tokens) == (1, 0, 32)
    assert chosen(run(compute, segment("b", 6, 4)))


def test_what_is_kept_of_an_attempt_outlives_the_next_one():
    compute = stage()
    compute.open(opening("a", 32))
    run(compute, segment("a", 0, 8))
    compute.close("a", 1, num_kept_tokens=6)
    compute.open(opening("a", 32, attempt=2))
    assert (compute.num_open, compute.num_kept_tokens, compute.kv.reserved_tokens) == (1, 6, 38)
    compute.close("a", 2)
    assert (compute.num_open, compute.num_kept_tokens, compute.kv.reserved_tokens) == (0, 6, 6)


def test_more_than_was_computed_is_not_kept():
    compute = stage()
    compute.open(opening("a", 32))
    run(compute, segment("a", 0, 8))
    compute.close("a", 1, num_kept_tokens=9)
    assert (compute.num_open, compute.num_kept_tokens, compute.kv.reserved_tokens) == (0, 0, 0)


def test_to_a_session_that_is_kept_nothing_is_added():
    compute = stage()
    compute.open(opening("a", 32))
    run(compute, segment("a", 0, 8))
    compute.close("a", 1, num_kept_tokens=6)
    late = [run(compute, segment("a", start, 1)) for start in (6, 8)]
    assert [error.code for output in late for _, error in output.failures] == ["kv_capacity", "kv_position"]


def begin_with(compute: StageCompute, num_tokens: int, *, source: str = "a", attempt: int = 1, num_rows: int = 0):
    prefix = SharedPrefix(session=source, attempt=attempt, num_tokens=num_tokens, num_rows=num_rows)
    compute.open(msgspec.structs.replace(opening("b"), num_prompt_tokens=12, prefix=prefix))


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"num_tokens": 9}, KVPositionError),
        ({"num_tokens": 8, "source": "c"}, SessionUnknownError),
        ({"num_tokens": 8, "attempt": 2}, SessionUnknownError),
        ({"num_tokens": 12}, MalformedEnvelopeError),
    ],
)
def test_a_prefix_that_nobody_has_is_refused_and_nothing_is_kept(wanted, error):
    compute = stage()
    compute.open(opening("a"))
    run(compute, segment("a", 0, 8))
    with pytest.raises(error):
        begin_with(compute, **wanted)
    assert compute.kv.num_sessions == 1
    begin_with(compute, 8)
    assert chosen(run(compute, segment("b", 8, 4)))


@pytest.mark.parametrize(("num_rows", "is_kept"), [(5, False), (4, True)])
def test_rows_that_a_prefix_stands_for_are_dropped(num_rows, is_kept):
    compute = stage()
    compute.open(opening("a"))
    run(compute, segment("a", 0, 8))
    compute.visual_rows.put("b", 1, 0, rows(5))
    begin_with(compute, 8, num_rows=num_rows)
    assert (compute.visual_rows.num_bytes > 0) == is_kept


def test_two_segments_of_one_session_may_share_a_microbatch():
    compute, whole = stage(), stage()
    compute.open(opening("a"))
    whole.open(opening("a"))
    together = run(compute, segment("a", 0, 4, wants_token=False), segment("a", 4, 3))
    assert not together.failures
    assert chosen(together) == chosen(run(whole, segment("a", 0, 7)))


def test_only_segments_that_want_a_token_get_one():
    compute = stage()
    compute.open(opening("a"))
    assert run(compute, segment("a", 0, 3, wants_token=False)).tokens == ()
    assert len(run(compute, segment("a", 3, 1)).tokens) == 1


def test_a_repeated_opening_changes_nothing():
    compute = stage()
    compute.open(opening("a"))
    run(compute, segment("a", 0, 3))
    compute.open(opening("a"))
    assert compute.kv.length(("a", 1)) == 3


def test_a_newer_attempt_replaces_the_older_and_an_older_one_is_refused():
    compute = stage(capacity=32)
    compute.open(opening("a", 32, attempt=1))
    compute.open(opening("a", 32, attempt=2))
    assert (compute.kv.num_sessions, compute.kv.length(("a", 2))) == (1, 0)
    with pytest.raises(StaleAttemptError):
        compute.open(opening("a", attempt=1))
    compute.close("a", 1)
    assert (compute.kv.num_sessions, compute.kv.length(("a", 2))) == (1, 0)
    failed = run(compute, segment("a", 0, 1, attempt=1)).failures
    assert isinstance(failed[0][1], SessionUnknownError)


def test_closing_frees_everything_and_may_be_repeated():
    compute = stage(capacity=32)
    for _ in range(3):
        compute.open(opening("a", 32))
        compute.visual_rows.put("a", 1, 0, VisualRows(torch.zeros(2, HIDDEN), {}))
        compute.close("a", 1)
        compute.close("a", 1)
    assert compute.kv.reserved_tokens == 0
    assert compute.visual_rows.num_bytes == 0
    compute.open(opening("b"))
    compute.close_all()
    assert compute.kv.num_sessions == 0


def test_a_session_that_does_not_fit_is_refused_and_the_others_stay():
    compute = stage(capacity=40)
    compute.open(opening("a", 30))
    with pytest.raises(KVCapacityError):
        compute.open(opening("b", 11))
    compute.open(opening("b", 10))
    assert (compute.kv.num_sessions, compute.kv.reserved_tokens) == (2, 40)


@pytest.mark.parametrize(
    "sampling", [{"logit_bias": {100_000: 1.0}}, {"end_token_ids": (100_000,)}, {"bad_word_ids": ((1, 100_000, 2),)}]
)
def test_a_session_that_names_a_token_beyond_the_vocabulary_is_refused(sampling):
    compute = stage()
    with pytest.raises(MalformedEnvelopeError) as caught:
        compute.open(opening("a", **sampling))
    assert caught.value.field == "opens.sampling"
    assert (compute.kv.num_sessions, compute.kv.reserved_tokens) == (0, 0)


def test_packing_the_cache_between_steps_changes_no_token():
    compute, calm = stage(capacity=40), stage(capacity=400)
    for session, size in (("a", 10), ("c", 10), ("b", 20)):
        compute.open(opening(session, size))
        calm.open(opening(session, size))
    for each in (compute, calm):
        run(each, segment("c", 0, 6))
        each.close("a", 1)
        each.close("b", 1)
        each.open(opening("d", 30))
    assert compute.kv.region(("c", 1)).start == 0  # moved
    for start in range(6, 10):
        assert run(compute, segment("c", start, 1)).tokens == run(calm, segment("c", start, 1)).tokens


# --- repeats and gaps ------------------------------------------------------------------------------------------------


def test_a_repeat_is_recognised_and_skipped():
    compute = stage()
    for session in "ab":
        compute.open(opening(session))
    first = run(compute, segment("a", 0, 5))
    again = run(compute, segment("a", 0, 5), segment("b", 0, 2))
    assert again.repeats == (segment("a", 0, 5),)
    assert [token.session for token in again.tokens] == ["b"]
    assert compute.kv.length(("a", 1)) == 5
    assert len(first.tokens) == 1


@pytest.mark.parametrize(("start", "count"), [(6, 1), (4, 2), (9, 3)])
def test_a_gap_or_an_overlap_fails_that_session_only(start, count):
    compute, other = stage(), stage()
    for session in "ab":
        compute.open(opening(session))
    other.open(opening("b"))
    run(compute, segment("a", 0, 5))
    output = run(compute, segment("a", start, count), segment("b", 0, 4))
    [(failed, error)] = output.failures
    assert (failed.session, type(error)) == ("a", KVPositionError)
    assert chosen(output) == chosen(run(other, segment("b", 0, 4)))
    assert compute.kv.length(("a", 1)) == 5


def test_unknown_sessions_and_overflow_fail_alone():
    compute = stage()
    compute.open(opening("a", 4))
    compute.open(opening("b"))
    output = run(compute, segment("x", 0, 1), segment("a", 0, 5), segment("b", 0, 3))
    assert [type(error) for _, error in output.failures] == [SessionUnknownError, KVCapacityError]
    assert [token.session for token in output.tokens] == ["b"]


def test_a_microbatch_of_failures_only_computes_nothing():
    compute = stage(cuts=(3,))
    output = run(compute, segment("x", 0, 3))
    assert output.segments == ()
    assert output.hidden.shape == (0, HIDDEN)
    assert output.positions.shape == (3, 0)
    empty = Microbatch((), torch.zeros(3, 0, dtype=torch.int32), token_ids=torch.zeros(0, dtype=torch.int32))
    assert compute.run(empty).segments == ()


# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": None},
        {"token_ids": torch.zeros(4, dtype=torch.int32)},
        {"token_ids": torch.zeros(5, dtype=torch.int64)},
        {"positions": torch.zeros(3, 4, dtype=torch.int32)},
        {"positions": torch.zeros(3, 5, dtype=torch.int64)},
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_anything_is_computed(change):
    compute = stage()
    compute.open(opening("a"))
    with pytest.raises(TensorMismatchError):
        compute.run(replace(batch(segment("a", 0, 5)), **change))
    assert compute.kv.length(("a", 1)) == 0


@pytest.mark.parametrize(
    "hidden", [None, torch.zeros(5, HIDDEN, dtype=torch.bfloat16), torch.zeros(5, HIDDEN + 1), torch.zeros(4, HIDDEN)]
)
def test_hidden_states_that_do_not_fit_are_refused(hidden):
    compute = stage(cuts=(3,), index=1)
    compute.open(opening("a"))
    with pytest.raises(TensorMismatchError, match="hidden"):
        compute.run(Microbatch((segment("a", 0, 5),), decode_positions(0, 5, 0), hidden=hidden))


@pytest.mark.parametrize("bad", [-1, 384, 2**31 - 1])
def test_token_ids_outside_the_vocabulary_fail_their_session_only(bad):
    compute = stage()
    for session in "ab":
        compute.open(opening(session))
    given = batch(segment("a", 0, 2), segment("b", 0, 2))
    given.token_ids[1] = bad
    output = compute.run(given)
    assert [type(error) for _, error in output.failures] == [TensorMismatchError]
    assert [token.session for token in output.tokens] == ["b"]


# --- visual rows -----------------------------------------------------------------------------------------------------


def rows(count: int, levels: tuple[int, ...] = (0, 1, 2), *, embeds: bool = True) -> VisualRows:
    def draw(seed: int) -> torch.Tensor:
        return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))

    return VisualRows(draw(99) if embeds else None, {level: draw(level) for level in levels})


def spans(*parts: tuple[int, int, int]) -> tuple[VisualSpan, ...]:
    return tuple(VisualSpan(offset=offset, count=count, row=row) for offset, count, row in parts)


@pytest.mark.parametrize(
    ("cuts", "needs"),
    [
        ((), [(True, (0, 1, 2))]),
        ((1,), [(True, (0,)), (False, (1, 2))]),
        ((1, 2, 3), [(True, (0,)), (False, (1,)), (False, (2,)), (False, ())]),
        ((3,), [(True, (0, 1, 2)), (False, ())]),
    ],
)
def test_stages_need_the_rows_of_their_own_layers(cuts, needs):
    found = [s.visual_row_needs for s in stages_of(VARIANT, cuts)]
    assert [(n.embeds, n.levels) for n in found] == needs


@pytest.mark.parametrize("delivered", [None, rows(3), rows(4, (0, 1)), rows(4, embeds=False)])
def test_missing_rows_fail_that_session_only_and_it_may_be_tried_again(delivered):
    compute = stage()
    for session in "ab":
        compute.open(opening(session))
    if delivered is not None:
        compute.visual_rows.put("a", 1, 0, delivered)
    wanted = segment("a", 0, 6, visual=spans((1, 4, 0)))
    output = run(compute, wanted, segment("b", 0, 3))
    assert [type(error) for _, error in output.failures] == [VisualRowsMissingError]
    assert [token.session for token in output.tokens] == ["b"]
    compute.visual_rows.put("a", 1, 0, rows(4))
    assert [token.session for token in run(compute, wanted).tokens] == ["a"]


def test_rows_are_dropped_when_the_last_of_them_is_prefilled():
    compute = stage()
    compute.open(opening("a"))
    compute.visual_rows.put("a", 1, 0, rows(5))
    run(compute, segment("a", 0, 4, visual=spans((1, 3, 0))))
    assert compute.visual_rows.num_bytes > 0
    run(compute, segment("a", 4, 4, visual=spans((0, 2, 3))))
    assert compute.visual_rows.num_bytes == 0


def test_rows_are_windowed_to_their_segment():
    whole, parts = stage(), stage()
    for each in (whole, parts):
        each.open(opening("a"))
        each.visual_rows.put("a", 1, 0, rows(5))
    expected = run(whole, segment("a", 0, 8, visual=spans((1, 3, 0), (5, 2, 3))))
    run(parts, segment("a", 0, 2, wants_token=False, visual=spans((1, 1, 0))))
    run(parts, segment("a", 2, 4, wants_token=False, visual=spans((0, 2, 1), (3, 1, 3))))
    assert chosen(run(parts, segment("a", 6, 2, visual=spans((0, 1, 4))))) == chosen(expected)


def test_a_span_outside_its_segment_or_rows_of_another_width_are_refused():
    compute = stage()
    compute.open(opening("a"))
    compute.visual_rows.put("a", 1, 0, rows(5))
    [(_, outside)] = run(compute, segment("a", 0, 4, visual=spans((2, 3, 0)))).failures
    assert isinstance(outside, TensorMismatchError)
    narrow = {level: torch.zeros(3, HIDDEN - 1) for level in range(3)}
    compute.visual_rows.put("a", 1, 0, VisualRows(torch.zeros(3, HIDDEN), narrow))
    [(_, width)] = run(compute, segment("a", 0, 4, visual=spans((1, 3, 0)))).failures
    assert isinstance(width, TensorMismatchError)


def test_stages_behind_the_deepstack_layers_ignore_visual_spans():
    compute = stage(cuts=(3,), index=1)
    compute.open(opening("a"))
    part = segment("a", 0, 4, visual=spans((1, 3, 0)))
    output = compute.run(Microbatch((part,), decode_positions(0, 4, 0), hidden=torch.randn(4, HIDDEN)))
    assert not output.failures


# --- failures of the computation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_nan_in_one_session_fails_that_session_only(kv_dtype: KVDtype):
    compute, healthy = (stage(cuts=(3,), index=1, kv_dtype=kv_dtype) for _ in range(2))
    for session in "ab":
        compute.open(opening(session))
    hidden = torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(0))
    parts = (segment("a", 0, 4), segment("b", 0, 4))
    positions = decode_positions(0, 4, 0).repeat(1, 2)
    for session in "ab":
        healthy.open(opening(session))
    expected = healthy.run(Microbatch(parts, positions, hidden=hidden.clone()))
    hidden[1] = float("nan")
    output = compute.run(Microbatch(parts, positions, hidden=hidden))
    assert [(s.session, type(e)) for s, e in output.failures] == [("a", NonFiniteLogitsError)]
    assert chosen(output) == {"b": chosen(expected)["b"]}


def test_a_failed_computation_advances_nobody_and_may_be_repeated(monkeypatch):
    compute, expected = stage(), stage()
    compute.open(opening("a"))
    expected.open(opening("a"))

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(compute.decoder, "forward", out_of_memory)
        with pytest.raises(ComputeError, match="no memory"):
            run(compute, segment("a", 0, 5))
    assert compute.kv.length(("a", 1)) == 0
    assert run(compute, segment("a", 0, 5)).tokens == run(expected, segment("a", 0, 5)).tokens


def test_a_stage_without_a_tokenizer_refuses_a_grammar_and_keeps_nothing_of_it():
    compute = stage()
    with pytest.raises(GrammarError):
        compute.open(opening("a", grammar=GrammarSettings(source="x")))
    assert compute.kv.num_sessions == 0


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_done", [0, 1, 5, 11])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSettings(),
        SamplingSettings(temperature=1.0, top_p=0.9, seed=11),
        SamplingSettings(temperature=0.8, repetition_penalty=1.3, presence_penalty=0.5, seed=3),
    ],
    ids=["greedy", "sampled", "penalised"],
)
def test_a_resumed_session_continues_as_the_undisturbed_one(sampling, num_done):
    shown = scene(VARIANT, "one image")
    request = replace(request_of(VARIANT, shown, num_tokens=12, sampling=sampling), eos_token_ids=())
    [whole] = WholeModel(stages_of(VARIANT)).generate([request])
    done = tuple(token.token_id for token in whole[:num_done])
    elsewhere = WholeModel(stages_of(VARIANT, (1, 4)))
    [rest] = elsewhere.generate([replace(request, generated=done, attempt=2)], chunk_tokens=9)
    assert [t.token_id for t in rest] == [t.token_id for t in whole[num_done:]]
    assert [t.position for t in rest] == [t.position for t in whole[num_done:]]


def test_a_mixed_model_of_dense_and_sparse_layers_computes():
    config = config_of(FP32[2])
    changed = replace(config, text=replace(config.text, mlp_only_layers=(1,)))
    tensors = {k: v for k, v in tensors_of(FP32[2]).items() if ".layers.1.mlp." not in k}
    for name, shape in (("gate", (160, 64)), ("up", (160, 64)), ("down", (64, 160))):
        tensors[f"model.language_model.layers.1.mlp.{name}_proj.weight"] = torch.zeros(shape)
    assert isinstance(changed, ModelConfig)
    [compute] = build_stages(changed, tensors, options=ComputeOptions())
    compute.open(opening("a"))
    assert len(run(compute, segment("a", 0, 3)).tokens) == 1
