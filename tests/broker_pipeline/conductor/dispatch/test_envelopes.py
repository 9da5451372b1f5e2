import numpy as np

from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.messages.activation import Envelope, SessionClose, VisualSpan
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.scheduling.kv_ledger import Close, SessionKey
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import PreparedPrompt, SessionState
from broker_pipeline.wire.codec import decode, encode
from tests.kit.simulated.stages import stage_worker

ROUTE = Route((stage_worker("a", 0, 2), stage_worker("b", 2, 4)))
BUILDER = EnvelopeBuilder("main", "f" * 64, 7, "bp.main.conductor.c.results")


def session(name: str, num_prompt: int, generated: list[int], **changes: object) -> SessionState:
    ids = np.arange(100, 100 + num_prompt, dtype=np.int32)
    prompt = PreparedPrompt(ids, np.stack([ids, ids + 1, ids + 2]), position_delta=-2, visual=changes.pop("visual", ()))  # type: ignore[arg-type]
    sampling = changes.pop("sampling", SamplingSettings())
    state = SessionState(SessionKey(name, 3), 0, ROUTE, prompt, sampling, 90, generated=generated, **changes)  # type: ignore[arg-type]
    state.num_reserved_tokens = 50
    return state


def microbatch(*segments: PlannedSegment, closes: tuple[Close, ...] = ()) -> PlannedBatch:
    return PlannedBatch(9, ROUTE, segments, closes, sent_at=10.0, deadline=40.0)


def test_prefill_replay_and_decode_in_one_envelope() -> None:
    fresh = session("fresh", 4, [], visual=(VisualSpan(offset=1, count=2, row=0),))
    replayed = session("replayed", 3, [7, 8])
    decoding = session("decoding", 3, [5, 6])
    envelope, tensors = BUILDER.build(
        microbatch(
            PlannedSegment(fresh, 0, 4, wants_token=True, opens=True),
            PlannedSegment(replayed, 0, 5, wants_token=True, opens=True),
            PlannedSegment(decoding, 4, 1, wants_token=True, num_kv_tokens=50),
            closes=(Close(SessionKey("gone", 2), 16),),
        ),
        now=15.0,
    )
    assert tensors["token_ids"].to_numpy().tolist() == [100, 101, 102, 103, 100, 101, 102, 7, 8, 6]
    assert tensors["positions"].to_numpy()[0].tolist() == [100, 101, 102, 103, 100, 101, 102, 1, 2, 2]
    assert tensors["positions"].to_numpy()[2].tolist() == [102, 103, 104, 105, 102, 103, 104, 1, 2, 2]
    assert [(s.session, s.attempt, s.start, s.count) for s in envelope.segments] == [
        ("fresh", 3, 0, 4), ("replayed", 3, 0, 5), ("decoding", 3, 4, 1),
    ]  # fmt: skip
    assert envelope.segments[0].visual == (VisualSpan(offset=1, count=2, row=0),)
    assert [s.num_kv_tokens for s in envelope.segments] == [0, 0, 50], "one has grown"
    assert [(o.session, o.num_kv_tokens, o.num_prompt_tokens) for o in envelope.opens] == [
        ("fresh", 50, 4), ("replayed", 50, 3),
    ]  # fmt: skip
    assert envelope.closes == (SessionClose(session="gone", attempt=2, num_kept_tokens=16),)
    assert envelope.route == ("bp.main.worker.a.1.work", "bp.main.worker.b.1.work")
    assert (envelope.epoch, envelope.microbatch, envelope.budget_s) == (7, 9, 25.0)


def test_history_goes_along_only_where_penalties_need_it() -> None:
    penalised = session("p", 2, [9], sampling=SamplingSettings(repetition_penalty=1.1))
    plain = session("q", 3, [])
    envelope, tensors = BUILDER.build(
        microbatch(
            PlannedSegment(penalised, 0, 3, wants_token=True, opens=True),
            PlannedSegment(plain, 0, 3, wants_token=True, opens=True),
        ),
        now=10.0,
    )
    assert [opening.num_history_tokens for opening in envelope.opens] == [3, 0]
    assert tensors["history"].to_numpy().tolist() == [100, 101, 9]


def test_an_empty_microbatch_has_no_tensors_and_what_is_built_survives_the_wire() -> None:
    envelope, tensors = BUILDER.build(microbatch(closes=(Close(SessionKey("s", 1)),)), now=50.0)
    assert tensors == {}
    assert envelope.budget_s == 0.0
    frame = encode(envelope, tensors)
    assert decode(frame.metadata, b"".join(frame.pieces), Envelope)[0] == envelope
