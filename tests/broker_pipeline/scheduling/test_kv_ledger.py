import pytest

from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.scheduling.kv_ledger import Close, KVLedger, SessionKey
from broker_pipeline.scheduling.routes import Route, StageInfo


def worker(name: str, capacity: int) -> StageInfo:
    return StageInfo(name, name, f"s.{name}", BlockRange(start=0, stop=1), capacity, 64)


A, B, C = worker("a", 100), worker("b", 50), worker("c", 100)
AB, AC = Route((A, B)), Route((A, C))
S, T = SessionKey("s", 1), SessionKey("t", 2)


@pytest.fixture
def ledger() -> KVLedger:
    ledger = KVLedger()
    for each in (A, B, C):
        ledger.add_worker(each)
    return ledger


def used(ledger: KVLedger) -> tuple[int, int, int]:
    return ledger.used_tokens("a"), ledger.used_tokens("b"), ledger.used_tokens("c")


def test_a_reservation_counts_on_every_worker_of_the_route(ledger: KVLedger) -> None:
    assert ledger.reserve(S, 40, AB)
    assert used(ledger) == (40, 40, 0)
    assert ledger.free_tokens(AB) == 10
    assert ledger.free_tokens(AC) == 60


def test_what_does_not_fit_takes_nothing(ledger: KVLedger) -> None:
    assert not ledger.reserve(S, 51, AB)
    assert used(ledger) == (0, 0, 0)


def test_room_is_free_only_once_each_stage_has_answered_for_the_close(ledger: KVLedger) -> None:
    ledger.reserve(S, 40, AB)
    ledger.close(S, AB)
    assert ledger.pending_closes(AC, limit=10) == (Close(S),)
    assert used(ledger) == (40, 40, 0)
    ledger.settle([Close(S)], [A])
    assert used(ledger) == (0, 40, 0)
    assert not ledger.has_pending_closes("a")
    assert ledger.has_pending_closes("b")
    ledger.settle([Close(S)], [A, B])
    assert used(ledger) == (0, 0, 0)


def test_a_session_grows_on_every_worker_or_on_none(ledger: KVLedger) -> None:
    ledger.reserve(S, 40, AB)
    most = 40 + ledger.free_tokens(AB)
    assert not ledger.grow(S, most + 1, AB)
    assert used(ledger) == (40, 40, 0)
    assert ledger.grow(S, most, AB)
    assert used(ledger) == (most, most, 0)
    ledger.close(S, AB)
    assert ledger.free_tokens(AB) == 0
    assert min(ledger.coming_tokens("a"), ledger.coming_tokens("b")) == most, "once it is closed"
    ledger.settle([Close(S)], [A, B])
    assert used(ledger) == (0, 0, 0)


def test_answers_for_what_was_not_closed_change_nothing(ledger: KVLedger) -> None:
    ledger.reserve(S, 40, AB)
    ledger.settle([Close(S), Close(T)], [A, B, C])
    assert used(ledger) == (40, 40, 0)


def test_closing_an_unreserved_session_leaves_nothing_pending(ledger: KVLedger) -> None:
    ledger.close(S, AB)
    assert ledger.pending_closes(AB, limit=10) == ()


def test_a_worker_that_has_gone_takes_its_reservations_along(ledger: KVLedger) -> None:
    ledger.reserve(S, 40, AB)
    ledger.remove_worker("b")
    ledger.close(S, AB)
    ledger.settle([Close(S)], [A, B])
    assert ledger.used_tokens("a") == 0


def test_a_worker_announced_again_keeps_what_it_holds(ledger: KVLedger) -> None:
    ledger.reserve(S, 40, AB)
    ledger.add_worker(A)
    assert ledger.used_tokens("a") == 40


def test_closes_in_one_envelope_are_bounded(ledger: KVLedger) -> None:
    for number in range(5):
        ledger.reserve(SessionKey("s", number), 1, AB)
        ledger.close(SessionKey("s", number), AB)
    assert len(ledger.pending_closes(AB, limit=3)) == 3


def test_of_what_is_kept_the_rest_is_freed_and_later_all_of_it(ledger: KVLedger) -> None:
    ledger.reserve(S, 40, AB)
    ledger.keep(S, 16, AB)
    assert (ledger.kept_tokens("b"), ledger.needed_tokens("b"), ledger.coming_tokens("b")) == (40, 0, 50 - 16)
    assert ledger.pending_closes(AB, limit=10) == (Close(S, 16),)
    ledger.settle([Close(S, 16)], [A, B])
    assert used(ledger) == (16, 16, 0)
    assert (ledger.kept_tokens("b"), ledger.needed_tokens("b")) == (16, 0)
    assert not ledger.has_pending_closes("b")
    ledger.close(S, AB)
    assert (ledger.kept_tokens("b"), ledger.needed_tokens("b"), ledger.coming_tokens("b")) == (0, 16, 50)
    ledger.settle([Close(S)], [A, B])
    assert used(ledger) == (0, 0, 0)


@pytest.mark.parametrize("is_close_first", [False, True], ids=["in order", "overtaken"])
def test_room_of_what_was_kept_and_is_closed_by_now_is_free_once_the_close_is_answered(
    ledger: KVLedger, is_close_first: bool
) -> None:
    ledger.reserve(S, 40, AB)
    ledger.keep(S, 16, AB)
    ledger.close(S, AB)
    answers = [Close(S, 16), Close(S)]
    for answer in reversed(answers) if is_close_first else answers:
        assert (used(ledger) == (0, 0, 0)) == (is_close_first and answer == Close(S, 16))
        ledger.settle([answer], [A, B])
    assert used(ledger) == (0, 0, 0)


def test_what_copies_may_still_need_is_not_closed_but_may_be_kept(ledger: KVLedger) -> None:
    ledger.reserve(S, 40, AB)
    ledger.hold(S)
    ledger.keep(S, 16, AB)
    assert ledger.pending_closes(AB, limit=10) == (Close(S, 16),)
    ledger.close(S, AB)
    assert ledger.pending_closes(AB, limit=10) == ()
    assert not ledger.has_pending_closes("a")
    ledger.let_go(S)
    assert ledger.has_pending_closes("a")
