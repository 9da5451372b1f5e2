"""Redis and NATS, brought into one sequence."""

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.messages.jobs import JobEvent, JobRecord, JobStatus, TokenEntry
from gateway.jobs.progress import MAX_TOKENS_PER_EVENT, JobProgress

TOKENS = tuple(TokenEntry(token_id=index, text=f"t{index}") for index in range(2 * MAX_TOKENS_PER_EVENT))


def record(status: JobStatus) -> JobRecord:
    started = None if status == "queued" else 2.0
    return JobRecord(job_id="j", status=status, created_at=1.0, started_at=started)


def live(start: int, stop: int) -> JobEvent:
    return JobEvent(job_id="j", kind="tokens", index=start, tokens=TOKENS[start:stop])


def kinds(events: list[JobEvent]) -> list[str]:
    return [event.kind for event in events]


def test_a_finished_job_is_told_from_its_beginning() -> None:
    progress = JobProgress("j")
    events = list(progress.take_state(record("succeeded"), TOKENS[:3]))
    assert kinds(events) == ["queued", "started", "tokens", "finished"]
    assert events[2].tokens == TOKENS[:3]
    assert progress.is_finished


def test_a_job_cancelled_in_the_queue_never_started() -> None:
    cancelled = JobRecord(job_id="j", status="cancelled", created_at=1.0, finished_at=2.0)
    assert kinds(list(JobProgress("j").take_state(cancelled, []))) == ["queued", "finished"]


def test_a_resumed_client_gets_the_rest() -> None:
    progress = JobProgress("j", num_tokens=2, is_resumed=True)
    events = list(progress.take_state(record("running"), TOKENS[2:5]))
    assert kinds(events) == ["started", "tokens"]
    assert (events[1].index, events[1].tokens) == (2, TOKENS[2:5])


def test_repeats_are_cut_and_gaps_are_noticed() -> None:
    progress = JobProgress("j", num_tokens=5, is_resumed=True)
    assert list(progress.take_event(live(3, 5))) == []
    (event,) = progress.take_event(live(4, 7))
    assert (event.index, event.tokens) == (5, TOKENS[5:7])
    assert not progress.must_look
    assert list(progress.take_event(live(8, 9))) == []
    assert progress.must_look


def test_a_new_attempt_is_no_second_start() -> None:
    progress = JobProgress("j")
    list(progress.take_state(record("running"), []))
    again = JobEvent(job_id="j", kind="started", record=record("running"))
    assert list(progress.take_event(again)) == []


def test_the_end_is_believed_only_when_redis_says_so() -> None:
    progress = JobProgress("j")
    list(progress.take_state(record("running"), TOKENS[:1]))
    assert list(progress.take_event(JobEvent(job_id="j", kind="finished", record=record("succeeded")))) == []
    assert progress.must_look
    assert kinds(list(progress.take_state(record("succeeded"), TOKENS[1:2]))) == ["tokens", "finished"]


def test_many_tokens_come_in_pieces() -> None:
    events = list(JobProgress("j").take_state(record("running"), TOKENS))
    assert [len(event.tokens) for event in events if event.kind == "tokens"] == [MAX_TOKENS_PER_EVENT] * 2


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.booleans()), max_size=25),
    st.integers(0, 4),
)
def test_whatever_arrives_every_token_comes_once_and_in_order(
    arrivals: list[tuple[int, int, bool]], already_seen: int
) -> None:
    """Events of NATS come late, twice or never; looks into Redis come in between."""
    progress = JobProgress("j", num_tokens=already_seen, is_resumed=already_seen > 0)
    seen: list[TokenEntry] = list(TOKENS[:already_seen])
    for start, count, looks in arrivals:
        events = list(progress.take_event(live(start, start + count)))
        if looks or progress.must_look:
            events += progress.take_state(record("running"), TOKENS[progress.num_tokens : max(18, start + count)])
        for event in events:
            assert event.index == len(seen) or event.kind != "tokens"
            seen += event.tokens
    assert tuple(seen) == TOKENS[: len(seen)]
    assert progress.num_tokens == len(seen)
