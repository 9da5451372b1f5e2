from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from broker_pipeline.errors import ContractError, PipelineError, TensorMismatchError
from broker_pipeline.messages.activation import Envelope, Segment, SessionClose, SessionOpen, VisualSpan
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.stage.envelope_checks import StageFacts, check_envelope, check_origin, read_tensors
from stages.worker.tensors import to_wire

FIRST = StageFacts(
    worker="stage-0",
    pipeline="main",
    fingerprint="f" * 64,
    subject="bp.main.worker.stage-0.abc.work",
    is_first=True,
    is_last=False,
    hidden_size=16,
    vocab_size=100,
    dtype=torch.float32,
    max_batch_tokens=32,
)
MIDDLE = replace(FIRST, is_first=False)
LAST = replace(FIRST, is_first=False, is_last=True)


def envelope(**changes: Any) -> Envelope:
    whole = Envelope(
        pipeline="main",
        fingerprint="f" * 64,
        epoch=1,
        microbatch=7,
        route=(FIRST.subject, "bp.main.worker.stage-1.def.work"),
        reply="bp.main.conductor.x.results",
        budget_s=5.0,
        segments=(segment("a", 0, 3), segment("b", 5, 1)),
    )
    return msgspec.structs.replace(whole, **changes)


def segment(session: str, start: int, count: int, *spans: tuple[int, int, int]) -> Segment:
    visual = tuple(VisualSpan(offset=offset, count=n, row=row) for offset, n, row in spans)
    return Segment(session=session, attempt=1, start=start, count=count, visual=visual)


def with_drafts(num_drafts: int, *, wants_token: bool) -> Segment:
    return Segment(session="a", attempt=1, start=5, count=3, num_drafts=num_drafts, wants_token=wants_token)


def opening(session: str, num_history: int = 0) -> SessionOpen:
    return SessionOpen(
        session=session,
        attempt=1,
        num_kv_tokens=8,
        num_prompt_tokens=3,
        sampling=SamplingSettings(),
        num_history_tokens=num_history,
    )


def tensors(**changes: torch.Tensor | None) -> dict[str, WireTensor]:
    whole: dict[str, torch.Tensor | None] = {
        "token_ids": torch.arange(4, dtype=torch.int32),
        "positions": torch.zeros(3, 4, dtype=torch.int32),
    }
    return {name: to_wire(tensor) for name, tensor in (whole | changes).items() if tensor is not None}


def test_a_good_envelope_passes() -> None:
    check_envelope(envelope(), FIRST)
    found = read_tensors(envelope(), tensors(), FIRST)
    assert found.inputs.tolist() == [0, 1, 2, 3]
    assert found.positions.shape == (3, 4)
    assert found.history == ()


@pytest.mark.parametrize(
    ("version", "pipeline", "fingerprint", "code", "field"),
    [
        (4, FIRST.pipeline, FIRST.fingerprint, "contract_version", "version"),
        (3, "other", FIRST.fingerprint, "contract", "pipeline"),
        (3, FIRST.pipeline, "0" * 64, "fingerprint_mismatch", "fingerprint"),
    ],
)
def test_what_is_meant_for_somebody_else_is_named(
    version: int, pipeline: str, fingerprint: str, code: str, field: str
) -> None:
    check_origin(3, FIRST.pipeline, FIRST.fingerprint, FIRST)
    with pytest.raises(ContractError) as refusal:
        check_origin(version, pipeline, fingerprint, FIRST)
    assert (refusal.value.code, refusal.value.field) == (code, field)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"route": ("elsewhere", "next")}, "malformed_envelope", "route"),
        ({"route": (FIRST.subject,)}, "malformed_envelope", "route"),
        ({"segments": (segment("a", 0, 1), segment("a", 1, 1))}, "malformed_envelope", "segments"),
        ({"opens": (opening("a"), opening("a"))}, "malformed_envelope", "opens"),
        ({"closes": (SessionClose(session="a", attempt=1),) * 2}, "malformed_envelope", "closes"),
        ({"segments": (segment("a", 0, 33),)}, "malformed_envelope", "segments"),
        ({"segments": (segment("a", 0, 4, (2, 3, 0)),)}, "malformed_envelope", "segments.visual"),
        ({"segments": (segment("a", 0, 4, (0, 2, 0), (1, 2, 2)),)}, "malformed_envelope", "segments.visual"),
        ({"segments": (with_drafts(3, wants_token=True),)}, "malformed_envelope", "segments.num_drafts"),
        ({"segments": (with_drafts(2, wants_token=False),)}, "malformed_envelope", "segments.num_drafts"),
    ],
)
def test_what_breaks_the_contract_is_named(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(ContractError) as refusal:
        check_envelope(envelope(**changes), FIRST)
    assert (refusal.value.code, refusal.value.field) == (code, field)


def test_drafts_follow_a_token() -> None:
    check_envelope(envelope(segments=(with_drafts(2, wants_token=True),)), FIRST)


def test_a_route_must_end_at_the_last_block() -> None:
    check_envelope(envelope(route=(FIRST.subject,)), LAST)
    with pytest.raises(ContractError, match="goes on after"):
        check_envelope(envelope(), LAST)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"token_ids": None}, "token_ids"),
        ({"positions": None}, "positions"),
        ({"extra": torch.zeros(1)}, "extra"),
        ({"token_ids": torch.zeros(3, dtype=torch.int32)}, "token_ids"),
        ({"positions": torch.zeros(3, 5, dtype=torch.int32)}, "positions"),
        ({"positions": torch.full((3, 4), -1, dtype=torch.int32)}, "positions"),
        ({"positions": torch.zeros(3, 4)}, "positions"),
    ],
)
def test_wrong_tensors_are_named(changes: dict[str, torch.Tensor | None], field: str) -> None:
    with pytest.raises(TensorMismatchError) as refusal:
        read_tensors(envelope(), tensors(**changes), FIRST)
    assert refusal.value.field == f"tensors.{field}"


def test_later_stages_take_hidden_states_of_the_models_dtype() -> None:
    hidden = torch.randn(4, 16)
    found = read_tensors(envelope(), tensors(token_ids=None, hidden=hidden), MIDDLE)
    assert torch.equal(found.inputs, hidden)
    with pytest.raises(PipelineError, match="bfloat16"):
        read_tensors(envelope(), tensors(token_ids=None, hidden=hidden.bfloat16()), MIDDLE)


def test_history_is_dealt_to_the_opens_in_order() -> None:
    opens = (opening("a", 2), opening("b"), opening("c", 1))
    found = read_tensors(envelope(opens=opens), tensors(history=torch.tensor([5, 6, 7], dtype=torch.int32)), FIRST)
    assert [part.tolist() for part in found.history] == [[5, 6], [], [7]]


def test_history_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(TensorMismatchError, match="from 0 to 99"):
        read_tensors(envelope(opens=(opening("a", 1),)), tensors(history=torch.tensor([100], dtype=torch.int32)), FIRST)


def test_several_attempts_of_one_session_may_be_closed_at_once() -> None:
    closes = tuple(SessionClose(session="a", attempt=attempt) for attempt in (1, 2, 4))
    check_envelope(envelope(closes=closes), FIRST)


def test_an_envelope_of_closes_alone_needs_no_tensors() -> None:
    closing = envelope(segments=(), closes=(SessionClose(session="a", attempt=1),))
    found = read_tensors(closing, {}, FIRST)
    assert (found.inputs.numel(), found.positions.shape) == (0, (3, 0))
