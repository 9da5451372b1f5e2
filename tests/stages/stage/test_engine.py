from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import torch

from broker_pipeline.messages.activation import (
    Envelope,
    MicrobatchResult,
    Segment,
    SessionClose,
    SessionOpen,
    VisualSpan,
)
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.wire.codec import decode, encode
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.compute.generate import Request, WholeModel
from stages.compute.visual_row_buffer import VisualRowBuffer, VisualRows
from stages.stage.engine import StageEngine
from stages.stage.envelope_checks import check_envelope, read_tensors
from stages.stage.work import Begun, Forward, Reply, StageWork
from stages.worker.epoch_fence import EpochFence
from stages.worker.tensors import to_wire
from tests.kit.models.tiny_stages import FINGERPRINT, PIPELINE, facts_of, tiny_stage, work_subject

GREEDY = SamplingSettings()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Chain:
    """Stages 0:2 and 2:6, envelopes passing from one to the other as bytes."""

    def __init__(self, kv_tokens: int = 256) -> None:
        self.clock = Clock()
        self.fences = [EpochFence(), EpochFence()]
        self.visual_rows = [VisualRowBuffer(2**20, 60), VisualRowBuffer(2**20, 60)]
        self.engines = []
        for index, (start, stop) in enumerate([(0, 2), (2, 6)]):
            compute = tiny_stage(start, stop, kv_tokens=kv_tokens, visual_rows=self.visual_rows[index])
            facts = facts_of(compute, f"stage-{index}")
            self.engines.append(StageEngine(compute, facts, self.fences[index], self.visual_rows[index], self.clock))
        self.number = 0

    def envelope(self, segments: Sequence[Segment] = (), **changes: Any) -> Envelope:
        self.number += 1
        whole = Envelope(
            pipeline=PIPELINE,
            fingerprint=FINGERPRINT,
            epoch=0,
            microbatch=self.number,
            route=(work_subject("stage-0"), work_subject("stage-1")),
            reply="results",
            budget_s=10.0,
            segments=tuple(segments),
        )
        return msgspec.structs.replace(whole, **changes)

    def step(self, index: int, envelope: Envelope, tensors: dict[str, WireTensor]) -> Forward | Reply | None:
        """One stage's work on an envelope that came over the wire."""
        frame = encode(envelope, tensors)
        body, received = decode(frame.metadata, b"".join(frame.pieces), Envelope)
        engine = self.engines[index]
        self.fences[index].admit(body.epoch)
        check_envelope(body, engine.facts)
        return engine.step(StageWork(body, read_tensors(body, received, engine.facts), self.clock.now))

    def run(self, envelope: Envelope, tensors: dict[str, WireTensor] | None = None) -> MicrobatchResult | None:
        outcome = self.step(0, envelope, tensors or {})
        if isinstance(outcome, Forward):
            assert outcome.envelope.route == (work_subject("stage-1"),)
            outcome = self.step(1, outcome.envelope, outcome.tensors)
        if outcome is None:
            return None
        assert isinstance(outcome, Reply)
        assert outcome.subject == "results"
        return outcome.result


def opening(session: str, attempt: int = 1, num_kv_tokens: int = 32, **changes: Any) -> SessionOpen:
    whole = SessionOpen(
        session=session, attempt=attempt, num_kv_tokens=num_kv_tokens, num_prompt_tokens=5, sampling=GREEDY
    )
    return msgspec.structs.replace(whole, **changes)


def segment(session: str, start: int, count: int, attempt: int = 1, **changes: Any) -> Segment:
    whole = Segment(session=session, attempt=attempt, start=start, count=count, wants_token=True)
    return msgspec.structs.replace(whole, **changes)


def inputs(tokens: Sequence[int], positions: Sequence[int]) -> dict[str, WireTensor]:
    return {
        "token_ids": to_wire(torch.tensor(tokens, dtype=torch.int32)),
        "positions": to_wire(torch.tensor([positions] * 3, dtype=torch.int32)),
    }


PROMPT = (5, 9, 14, 200, 33)
PLACES = (0, 1, 2, 3, 4)


def reference(prompt: Sequence[int], max_tokens: int, sampling: SamplingSettings = GREEDY) -> list[int]:
    request = Request("r", tuple(prompt), sampling=sampling, max_tokens=max_tokens)
    return [token.token_id for token in WholeModel([tiny_stage(0, 6)]).generate([request])[0]]


def prefill(chain: Chain, session: str = "a", attempt: int = 1) -> MicrobatchResult:
    result = chain.run(
        chain.envelope([segment(session, 0, 5, attempt)], opens=(opening(session, attempt),)), inputs(PROMPT, PLACES)
    )
    assert result is not None
    return result


def codes(result: MicrobatchResult | None) -> dict[str, str]:
    assert result is not None
    return {failure.session: failure.failure.code for failure in result.failures}


def test_tokens_through_two_stages_are_those_of_one_process() -> None:
    chain, expected = Chain(), reference(PROMPT, 4)
    result = prefill(chain)
    assert [t.worker for t in result.timings] == ["stage-0", "stage-1"]
    tokens = [result.tokens[0].token_id]
    for index in range(3):
        again = chain.run(chain.envelope([segment("a", 5 + index, 1)]), inputs([tokens[-1]], [5 + index]))
        assert again is not None
        assert again.tokens[0].position == 6 + index
        tokens.append(again.tokens[0].token_id)
    assert tokens == expected


def test_closes_free_every_stage_even_without_segments() -> None:
    chain = Chain()
    prefill(chain)
    assert [engine.sessions.kv_used_tokens for engine in chain.engines] == [32, 32]
    result = chain.run(chain.envelope(closes=(SessionClose(session="a", attempt=1),)))
    assert result is not None
    assert result.failure is None
    assert [engine.sessions.kv_used_tokens for engine in chain.engines] == [0, 0]
    assert [engine.sessions.num_open for engine in chain.engines] == [0, 0]


def test_closes_for_one_stage_alone_are_answered_by_it() -> None:
    chain = Chain()
    prefill(chain)
    lone = chain.envelope(route=(work_subject("stage-0"),), closes=(SessionClose(session="a", attempt=1),))
    outcome = chain.step(0, lone, {})
    assert isinstance(outcome, Reply)
    assert (outcome.result.worker, outcome.result.failure) == ("stage-0", None)
    assert [engine.sessions.num_open for engine in chain.engines] == [0, 1]


def test_one_session_that_cannot_go_on_leaves_its_neighbours_alone() -> None:
    chain = Chain()
    prefill(chain, "a")
    segments = [segment("lost", 7, 1), segment("a", 5, 1), segment("b", 0, 5), segment("gap", 2, 5)]
    opens = (opening("b"), opening("gap"), opening("big", num_kv_tokens=1000))
    result = chain.run(
        chain.envelope(segments, opens=opens),
        inputs([1, 7, *PROMPT, *PROMPT], [7, 5, *PLACES, 2, 3, 4, 5, 6]),
    )
    assert codes(result) == {"lost": "session_unknown", "gap": "kv_position", "big": "kv_capacity"}
    assert result is not None
    assert {token.session: token.token_id for token in result.tokens}["b"] == reference(PROMPT, 1)[0]
    assert {failure.worker for failure in result.failures} == {"stage-0"}
    assert {token.session for token in result.tokens} == {"a", "b"}


def test_a_session_whose_opening_fails_is_left_out_of_the_computation() -> None:
    chain = Chain()
    segments = [segment("big", 0, 5), segment("b", 0, 5)]
    opens = (opening("big", num_kv_tokens=1000), opening("b"))
    result = chain.run(chain.envelope(segments, opens=opens), inputs([1, 1, 1, 1, 1, *PROMPT], [*PLACES, *PLACES]))
    assert codes(result) == {"big": "kv_capacity"}
    assert result is not None
    assert [token.token_id for token in result.tokens] == reference(PROMPT, 1)


def test_sessions_grow_where_segments_say_so_and_a_refusal_concerns_one_alone() -> None:
    chain = Chain()
    opens = (opening("a", num_kv_tokens=5), opening("b", num_kv_tokens=5))
    both = [segment("a", 0, 5), segment("b", 0, 5)]
    chain.run(chain.envelope(both, opens=opens), inputs([*PROMPT, *PROMPT], [*PLACES, *PLACES]))
    first = reference(PROMPT, 2)
    grown = [segment("a", 5, 1, num_kv_tokens=9), segment("b", 5, 1, num_kv_tokens=100_000)]
    result = chain.run(chain.envelope(grown), inputs([first[0], 7], [5, 5]))
    assert codes(result) == {"b": "kv_capacity"}
    assert result is not None
    assert [token.token_id for token in result.tokens] == first[1:]
    assert [engine.sessions.kv_used_tokens for engine in chain.engines] == [9 + 5, 9 + 5]
    result = chain.run(chain.envelope([segment("b", 5, 1)]), inputs([7], [5]))
    assert codes(result) == {"b": "kv_capacity"}, "it has not grown"


def test_failures_of_an_earlier_stage_travel_on_and_nothing_left_is_answered_at_once() -> None:
    chain = Chain()
    lost = chain.step(0, chain.envelope([segment("lost", 3, 1)]), inputs([1], [3]))
    assert isinstance(lost, Reply)
    assert codes(lost.result) == {"lost": "session_unknown"}
    assert lost.result.failure is None


def test_a_repeat_is_not_computed_twice_and_not_answered_twice() -> None:
    chain = Chain()
    first = prefill(chain)
    repeated = chain.envelope([segment("a", 0, 5)], opens=(opening("a"),))
    assert chain.run(repeated, inputs(PROMPT, PLACES)) is None
    after = chain.run(chain.envelope([segment("a", 5, 1)]), inputs([first.tokens[0].token_id], [5]))
    assert after is not None
    assert after.tokens[0].token_id == reference(PROMPT, 2)[1]


def test_a_higher_attempt_replaces_and_an_older_one_cannot_come_back() -> None:
    chain = Chain()
    prefill(chain, attempt=1)
    assert prefill(chain, attempt=2).tokens[0].token_id == reference(PROMPT, 1)[0]
    assert chain.engines[0].sessions.num_open == 1
    older = chain.run(chain.envelope([segment("a", 0, 5, 1)], opens=(opening("a", 1),)), inputs(PROMPT, PLACES))
    assert codes(older) == {"a": "stale_attempt"}
    chain.run(chain.envelope(closes=(SessionClose(session="a", attempt=2),)))
    stuck = chain.run(chain.envelope([segment("a", 0, 5, 2)], opens=(opening("a", 2),)), inputs(PROMPT, PLACES))
    assert codes(stuck) == {"a": "stale_attempt"}
    assert chain.engines[0].sessions.kv_used_tokens == 0


def test_a_higher_epoch_drops_every_session_and_the_older_one_is_refused() -> None:
    chain = Chain()
    prefill(chain)
    chain.visual_rows[0].put("x", 1, 0, VisualRows(torch.zeros(1, 64), {}))
    waiting = chain.envelope([segment("a", 5, 1)])
    chain.fences[0].admit(4)
    outcome = chain.engines[0].step(
        StageWork(waiting, read_tensors(waiting, inputs([1], [5]), chain.engines[0].facts), chain.clock.now)
    )
    assert isinstance(outcome, Reply)
    assert outcome.result.failure is not None
    assert outcome.result.failure.code == "stale_epoch"
    assert (chain.engines[0].sessions.num_open, chain.visual_rows[0].num_sessions) == (0, 0)
    fresh = chain.run(chain.envelope([segment("a", 0, 5)], opens=(opening("a"),), epoch=4), inputs(PROMPT, PLACES))
    assert fresh is not None
    assert fresh.tokens[0].token_id == reference(PROMPT, 1)[0]


def test_an_envelope_that_waited_too_long_is_answered_and_its_closes_hold() -> None:
    chain = Chain()
    prefill(chain)
    late = chain.envelope([segment("b", 0, 5)], opens=(opening("b"),), closes=(SessionClose(session="a", attempt=1),))
    work = StageWork(late, read_tensors(late, inputs(PROMPT, PLACES), chain.engines[0].facts), chain.clock.now)
    chain.clock.now += 10
    outcome = chain.engines[0].step(work)
    assert isinstance(outcome, Reply)
    assert outcome.result.failure is not None
    assert outcome.result.failure.code == "deadline_exceeded"
    assert chain.engines[0].sessions.num_open == 0


def test_the_next_stage_gets_what_is_left_of_the_budget() -> None:
    chain = Chain()
    envelope = chain.envelope([segment("a", 0, 5)], opens=(opening("a"),))
    work = StageWork(envelope, read_tensors(envelope, inputs(PROMPT, PLACES), chain.engines[0].facts), chain.clock.now)
    chain.clock.now += 4
    outcome = chain.engines[0].step(work)
    assert isinstance(outcome, Forward)
    assert outcome.envelope.budget_s == pytest.approx(6)
    assert outcome.envelope.timings[0].queue_s == 0, "nothing was in the way: these seconds are nobody's computing"


def test_a_microbatch_has_waited_for_as_long_as_an_earlier_one_was_in_the_way() -> None:
    chain = Chain()
    engine, works = chain.engines[0], []
    for name in ("a", "b"):
        envelope = chain.envelope([segment(name, 0, 5)], opens=(opening(name),))
        works.append(StageWork(envelope, read_tensors(envelope, inputs(PROMPT, PLACES), engine.facts), chain.clock.now))
    timings = []
    for work in works:
        begun = engine.begin(work)
        assert isinstance(begun, Begun)
        chain.clock.now += 3
        outcome = engine.finish(begun)
        assert isinstance(outcome, Forward)
        timings += outcome.envelope.timings
    assert [(timing.queue_s, timing.compute_s) for timing in timings] == [(0, 3), (3, 3)]


def test_history_travels_to_the_sampler_with_its_session() -> None:
    chain = Chain()
    sampling = SamplingSettings(repetition_penalty=1.7)
    opens = (
        opening("big", num_kv_tokens=1000, num_history_tokens=2, sampling=sampling),
        opening("a", num_history_tokens=5, sampling=sampling),
    )
    history = {"history": to_wire(torch.tensor([1, 2, *PROMPT], dtype=torch.int32))}
    result = chain.run(chain.envelope([segment("a", 0, 5)], opens=opens), inputs(PROMPT, PLACES) | history)
    assert result is not None
    assert [token.token_id for token in result.tokens] == reference(PROMPT, 1, sampling)


def test_missing_visual_rows_fail_their_session_only() -> None:
    chain = Chain()
    visual = (VisualSpan(offset=1, count=2, row=0),)
    segments = [segment("a", 0, 5, visual=visual), segment("b", 0, 5)]
    result = chain.run(
        chain.envelope(segments, opens=(opening("a"), opening("b"))), inputs([*PROMPT, *PROMPT], [*PLACES, *PLACES])
    )
    assert codes(result) == {"a": "visual_rows_missing"}


def test_a_crash_of_the_computation_is_answered_and_sessions_stay_where_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = Chain()
    first = prefill(chain)
    decoder = chain.engines[1]._compute.decoder
    real = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda *_: 1 // 0)
    step = chain.envelope([segment("a", 5, 1)])
    crashed = chain.run(step, inputs([first.tokens[0].token_id], [5]))
    assert crashed is not None
    assert crashed.failure is not None
    assert (crashed.failure.code, crashed.failure.retryable) == ("compute", True)
    assert crashed.worker == "stage-1"
    monkeypatch.setattr(decoder, "forward", real)
    assert prefill(chain, attempt=2).tokens == (msgspec.structs.replace(first.tokens[0], attempt=2),)
