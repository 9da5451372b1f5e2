import pytest

from broker_pipeline.errors import (
    ComputeError,
    ConstantLogitsError,
    DeadlineExceededError,
    Failure,
    KVCapacityError,
    NonFiniteLogitsError,
    NotAnImageError,
    PipelineError,
    RouteLostError,
    SessionUnknownError,
    StageError,
    TensorMismatchError,
    TransportError,
    VisualRowsMissingError,
    WorkerLostError,
)
from broker_pipeline.scheduling.policies.retries import Retry, RetryLimits, RetryPolicy

DEAD = StageError("worker died").to_failure()


def policy() -> RetryPolicy:
    return RetryPolicy(RetryLimits(max_attempts=5, backoff_s=0.2, max_backoff_s=1.0))


def blamed(retries: RetryPolicy, failure: Failure, num_tokens: int = 0) -> Retry | Failure:
    return retries.after(failure, is_blamed=True, num_tokens=num_tokens)


def test_whoever_was_just_there_is_retried_at_once_for_ever() -> None:
    retries = policy()
    for _ in range(100):
        assert retries.after(DEAD, is_blamed=False, num_tokens=0) == Retry(0.0, is_alone=False)


@pytest.mark.parametrize(
    "error", [ComputeError("x"), NonFiniteLogitsError("x"), ConstantLogitsError("x"), TensorMismatchError("x")]
)
def test_what_breaks_a_stage_is_retried_alone_and_fails_when_it_breaks_it_again(error: StageError) -> None:
    retries = policy()
    assert blamed(retries, error.to_failure()) == Retry(0.0, is_alone=True)
    verdict = blamed(retries, error.to_failure())
    assert isinstance(verdict, Failure)
    assert verdict.code == "retries_exhausted"
    assert error.code in verdict.message


@pytest.mark.parametrize("failure", [DEAD, WorkerLostError("worker died").to_failure()])
def test_to_be_in_hand_at_deaths_counts_and_backs_off(failure: Failure) -> None:
    retries = policy()
    verdicts = [blamed(retries, failure) for _ in range(5)]
    assert verdicts[:4] == [Retry(0.0, False), Retry(0.4, True), Retry(0.8, True), Retry(1.0, True)]
    assert isinstance(verdicts[4], Failure)
    assert "5 attempts" in verdicts[4].message
    assert "worker died" in verdicts[4].message


def test_a_token_more_starts_the_count_again() -> None:
    retries = policy()
    for num_tokens in range(1, 30):
        assert blamed(retries, DEAD, num_tokens) == Retry(0.0, is_alone=False)


@pytest.mark.parametrize("error", [VisualRowsMissingError("x"), SessionUnknownError("x"), KVCapacityError("x")])
def test_a_stage_out_of_step_is_no_reason_to_be_alone_but_counts(error: StageError) -> None:
    retries = policy()
    verdicts = [blamed(retries, error.to_failure()) for _ in range(5)]
    assert all(isinstance(verdict, Retry) and not verdict.is_alone for verdict in verdicts[:4])
    assert isinstance(verdicts[4], Failure)


def test_a_wrong_input_fails_as_what_it_is() -> None:
    failure = NotAnImageError("no image", field="messages[0]").to_failure()
    assert blamed(policy(), failure) == failure


@pytest.mark.parametrize("error", [TransportError("gone"), RouteLostError("a stage of it died")])
def test_what_the_broker_or_a_lost_route_did_never_counts(error: PipelineError) -> None:
    retries = policy()
    for _ in range(20):
        assert blamed(retries, error.to_failure()) == Retry(0.1, is_alone=False)


def test_who_is_on_its_own_stays_so_until_it_gets_further() -> None:
    retries = policy()
    blamed(retries, DEAD)
    blamed(retries, DEAD)
    assert retries.is_alone
    retries.after(DEAD, is_blamed=False, num_tokens=0)
    assert retries.is_alone
    blamed(retries, DEAD, num_tokens=1)
    assert not retries.is_alone
    assert not retries.anew().is_alone


def test_a_missed_deadline_counts() -> None:
    retries = policy()
    verdicts = [blamed(retries, DeadlineExceededError("late").to_failure()) for _ in range(5)]
    assert isinstance(verdicts[4], Failure)


def met(retries: RetryPolicy, worker: str, error: PipelineError, others: str) -> Retry | Failure:
    """Fail on a worker while there are others."""
    return retries.after(
        error.to_failure(),
        is_blamed=True,
        num_tokens=0,
        suspects=[worker],
        has_other=lambda failed: bool(set(others).difference(failed)),
    )


def test_what_a_worker_fails_is_tried_by_itself_on_another_and_counts_only_where_there_is_none() -> None:
    retries = policy()
    assert met(retries, "a", ComputeError("x"), "ab") == Retry(0.0, is_alone=True)
    assert retries.failed_on == {"a"}
    assert met(retries, "b", ComputeError("x"), "ab") == Retry(0.0, is_alone=True), "on a it was not by itself"
    assert retries.failed_on == {"b"}
    assert isinstance(met(retries, "a", ComputeError("x"), "ab"), Failure), "by itself on both"


def test_where_there_is_no_other_worker_it_counts() -> None:
    retries, as_ever = policy(), policy()
    for error in [KVCapacityError("x"), SessionUnknownError("x"), ComputeError("x"), ComputeError("x")]:
        assert met(retries, "a", error, "a") == blamed(as_ever, error.to_failure())


def test_an_input_fails_on_three_workers_at_most() -> None:
    retries = policy()
    verdicts = [met(retries, worker, ComputeError("x"), "abcdef") for worker in "abc"]
    assert verdicts[:2] == [Retry(0.0, is_alone=True)] * 2
    assert isinstance(verdicts[2], Failure)


def test_a_worker_that_takes_no_session_costs_no_attempt_where_another_may() -> None:
    retries = policy()
    assert met(retries, "a", KVCapacityError("no room"), "ab") == Retry(0.0, is_alone=False)
    assert blamed(retries, KVCapacityError("no room").to_failure()) == Retry(0.0, is_alone=False)


@pytest.mark.parametrize("error", [WorkerLostError("died"), VisualRowsMissingError("x"), NotAnImageError("x")])
def test_a_death_a_load_and_a_wrong_input_are_never_put_down_to_the_worker(error: PipelineError) -> None:
    retries, as_today = policy(), policy()
    assert met(retries, "a", error, "ab") == blamed(as_today, error.to_failure())
    assert not retries.failed_on


def test_a_token_more_forgives_the_workers() -> None:
    retries = policy()
    met(retries, "a", ComputeError("x"), "ab")
    assert retries.after(DEAD, is_blamed=False, num_tokens=1) == Retry(0.0, is_alone=False)
    assert not retries.failed_on


def test_who_got_further_on_its_own_is_in_company_again_and_not_to_blame_for_that() -> None:
    retries, poisoned = policy(), ComputeError("poisoned").to_failure()
    assert blamed(retries, poisoned, num_tokens=6) == Retry(0.0, is_alone=True)
    assert blamed(retries, poisoned, num_tokens=8) == Retry(0.0, is_alone=True)
    assert isinstance(blamed(retries, poisoned, num_tokens=8), Failure)
