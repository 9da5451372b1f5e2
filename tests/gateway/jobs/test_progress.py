"""Redis and NATS, brought into one sequence."""

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.messages.jobs import JobEvent, JobRecord, JobStatus, TokenEntry
from gateway.jobs.progress import MAX_TOKENS_PER_EVENT, JobProgress

TOKENS = tuple(TokenEntry(token_id=index, text=f"t{index}") for index in range(2 * MAX_TOKENS_PER_EVENT))


def record(status: JobStatus, first_attempt: int = 1, attempt: int = 1) -> JobRecord:
    started = None if status == "queued" else 2.0
    return JobRecord(
        job_id="j",
        status=status,
        created_at=1.0,
        started_at=started,
        attempt=max(attempt, first_attempt),
        first_attempt=first_attempt,
    )


def live(start: int, stop: int, attempt: int = 1) -> JobEvent:
    return JobEvent(job_id="j", kind="tokens", index=start, attempt=attempt, tokens=TOKENS[start:stop])


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
    assert progress.start == 1
    events = list(progress.take_state(record("running"), TOKENS[1:5]))
    assert progress.start == 5
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
            events += progress.take_state(record("running"), TOKENS[progress.start : max(18, start + count)])
        for event in events:
            assert event.index == len(seen) or event.kind != "tokens"
            seen += event.tokens
    assert tuple(seen) == TOKENS[: len(seen)]
    assert progress.num_tokens == len(seen)


# --- jobs that begin again ------------------------------------------------------------------------------------------


def test_a_client_is_told_once_that_all_it_saw_is_void() -> None:
    progress = JobProgress("j")
    list(progress.take_state(record("running"), TOKENS[:5]))
    [told] = progress.take_state(record("running", first_attempt=3), TOKENS[5:8])
    assert (told.kind, told.index, told.first_attempt, progress.num_tokens) == ("restarted", 0, 3, 0)
    assert progress.must_look, "the tokens that were read are not those that follow"
    [tokens] = progress.take_state(record("running", first_attempt=3), TOKENS[:8])
    assert (tokens.kind, tokens.index, tokens.first_attempt, tokens.tokens) == ("tokens", 0, 3, TOKENS[:8])
    assert not progress.must_look


def test_who_has_seen_nothing_need_not_know() -> None:
    progress = JobProgress("j")
    assert kinds(list(progress.take_state(record("running", first_attempt=2), TOKENS[:1]))) == [
        "queued",
        "started",
        "tokens",
    ]


def test_tokens_of_a_later_attempt_are_looked_up_and_those_of_a_void_one_dropped() -> None:
    progress = JobProgress("j", num_tokens=5, first_attempt=2, is_resumed=True)
    list(progress.take_state(record("running", first_attempt=2, attempt=3), TOKENS[4:5]))
    assert list(progress.take_event(live(5, 6, attempt=1))) == []
    assert not progress.must_look
    assert kinds(list(progress.take_event(live(5, 6, attempt=2)))) == ["tokens"]
    assert kinds(list(progress.take_event(live(6, 7, attempt=3)))) == ["tokens"]
    assert list(progress.take_event(live(7, 8, attempt=4))) == []
    assert progress.must_look


def test_a_client_that_comes_back_after_a_restart_is_told() -> None:
    progress = JobProgress("j", num_tokens=2, first_attempt=1, is_resumed=True)
    assert kinds(list(progress.take_state(record("succeeded", first_attempt=4), TOKENS[2:9]))) == ["restarted"]
    assert kinds(list(progress.take_state(record("succeeded", first_attempt=4), TOKENS[:9]))) == [
        "started",
        "tokens",
        "finished",
    ]


def test_a_client_that_has_seen_more_than_there_is_begins_again() -> None:
    """Redis has lost tokens since, or the id is not this job's."""
    progress = JobProgress("j", num_tokens=7, is_resumed=True)
    [told] = progress.take_state(record("succeeded"), TOKENS[6:6])
    assert (told.kind, told.index, progress.start, progress.must_look) == ("restarted", 0, 0, True)
    events = list(progress.take_state(record("succeeded"), TOKENS[:6]))
    assert kinds(events) == ["started", "tokens", "finished"]
    assert (events[1].index, events[1].tokens) == (0, TOKENS[:6])


def test_a_client_that_has_seen_more_than_there_is_yet_goes_on() -> None:
    """Redis lost tokens at a failover; a conductor computes the same ones again."""
    progress = JobProgress("j", num_tokens=7, is_resumed=True)
    assert kinds(list(progress.take_state(record("running"), TOKENS[6:4]))) == ["started"]
    assert list(progress.take_event(live(4, 7, attempt=1))) == []
    assert kinds(list(progress.take_event(live(7, 8, attempt=1)))) == ["tokens"]
    [tokens, finished] = progress.take_state(record("succeeded"), TOKENS[progress.start : 9])
    assert (tokens.index, tokens.tokens, finished.kind) == (8, TOKENS[8:9], "finished")


def test_a_client_that_has_every_token_goes_on() -> None:
    progress = JobProgress("j", num_tokens=6, is_resumed=True)
    assert kinds(list(progress.take_state(record("succeeded"), TOKENS[5:6]))) == ["started", "finished"]


STEPS = st.tuples(st.sampled_from(("grow", "restart", "tell", "late", "look")), st.integers(0, 6))


@given(st.lists(STEPS, max_size=40))
def test_whatever_begins_again_a_client_has_all_tokens_of_one_attempt(steps: list[tuple[str, int]]) -> None:
    """Redis moves on; its news are told now, late or never. A token's id says with which attempt its list began."""

    def token(number: int) -> TokenEntry:
        return TokenEntry(token_id=1000 * first + number)

    progress, seen, first, tokens, told = JobProgress("j"), [], 1, [], []

    def show(events: list[JobEvent]) -> None:
        for event in events:
            if event.kind == "restarted":
                seen.clear()
            seen.extend(entry.token_id for entry in event.tokens)
        while progress.must_look:
            show(list(progress.take_state(record("running", first_attempt=first), tokens[progress.start :])))

    for step, number in steps:
        if step == "restart":
            first, tokens = first + 1, []
        elif step == "grow":
            start = len(tokens)
            tokens = tokens + [token(start + index) for index in range(number)]
            told.append(JobEvent(job_id="j", kind="tokens", index=start, attempt=first, tokens=tuple(tokens[start:])))
        elif step == "look":
            progress.must_look = True
            show([])
        elif told:
            show(list(progress.take_event(told[-1] if step == "tell" else told[number % len(told)])))
        attempts = {token_id // 1000 for token_id in seen}
        assert len(attempts) <= 1
        assert [token_id % 1000 for token_id in seen] == list(range(len(seen)))
        assert len(seen) == progress.num_tokens
