from __future__ import annotations

import pytest
import torch

from broker_pipeline.errors import StaleAttemptError, TensorMismatchError, VisualRowsMissingError, WorkerBusyError
from stages.compute.visual_row_buffer import VisualRowBuffer, VisualRows


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rows(num_rows: int = 4, width: int = 8) -> VisualRows:
    return VisualRows(torch.zeros(num_rows, width), {0: torch.zeros(num_rows, width)})


def buffer(max_bytes: int = 10_000, clock: Clock | None = None) -> VisualRowBuffer:
    return VisualRowBuffer(max_bytes, ttl_s=10, clock=clock or Clock())


def test_rows_come_back_under_session_and_attempt() -> None:
    held, kept = buffer(), rows()
    held.put("a", 1, 0, kept)
    assert held.find("a", 1) is kept
    assert held.num_bytes == 2 * 4 * 8 * 4
    with pytest.raises(VisualRowsMissingError):
        held.find("a", 2)


def test_rows_expire() -> None:
    clock = Clock()
    held = buffer(clock=clock)
    held.put("a", 1, 0, rows())
    clock.now = 10
    with pytest.raises(VisualRowsMissingError):
        held.find("a", 1)
    assert (held.num_sessions, held.num_bytes) == (0, 0)


def test_a_full_buffer_refuses_and_expiry_makes_room() -> None:
    clock = Clock()
    held = buffer(max_bytes=300, clock=clock)
    held.put("a", 1, 0, rows())
    with pytest.raises(WorkerBusyError) as refusal:
        held.put("b", 1, 0, rows())
    assert refusal.value.retryable
    clock.now = 10
    held.put("b", 1, 0, rows())
    assert held.num_sessions == 1


def test_a_repeat_replaces_and_counts_once() -> None:
    held = buffer(max_bytes=300)
    held.put("a", 1, 0, rows())
    held.put("a", 1, 0, rows())
    assert held.num_bytes == 256


def test_a_newer_attempt_replaces_an_older_one_and_never_the_reverse() -> None:
    held = buffer()
    held.put("a", 1, 0, rows())
    held.put("a", 2, 0, rows())
    with pytest.raises(StaleAttemptError):
        held.put("a", 1, 0, rows())
    with pytest.raises(VisualRowsMissingError):
        held.find("a", 1)
    assert held.num_sessions == 1


def test_discard_spares_newer_attempts_and_other_sessions() -> None:
    held = buffer()
    held.put("a", 2, 0, rows())
    held.put("b", 1, 0, rows())
    held.discard("a", 1)
    assert held.num_sessions == 2
    held.discard("a", 2)
    assert (held.num_sessions, held.num_bytes) == (1, 256)


def test_rows_of_older_epochs_go() -> None:
    held = buffer()
    held.put("a", 1, 3, rows())
    held.put("b", 1, 4, rows())
    held.drop_before(4)
    held.find("b", 1)
    assert held.num_sessions == 1


def test_tensors_of_one_delivery_have_equally_many_rows() -> None:
    with pytest.raises(TensorMismatchError):
        VisualRows(torch.zeros(3, 8), {0: torch.zeros(4, 8)})


@pytest.mark.parametrize("embeds", [torch.randn(4, 8), None])
def test_a_copy_has_memory_of_its_own(embeds: torch.Tensor | None) -> None:
    given = VisualRows(embeds, {0: torch.randn(4, 8), 2: torch.randn(4, 8)})
    copy = given.copied(is_pinned=False)
    assert [each.tolist() for each in copy._tensors()] == [each.tolist() for each in given._tensors()]
    assert (copy.embeds is None) == (embeds is None)
    assert set(copy.levels) == {0, 2}
    places = [{each.data_ptr() for each in rows._tensors()} for rows in (copy, given)]
    assert not places[0] & places[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has page-locked memory")
def test_rows_are_sent_again_where_memory_cannot_be_locked() -> None:
    with pytest.raises(WorkerBusyError, match=r"no memory for 256 bytes of visual rows: .*pin"):
        rows().copied(is_pinned=True)
