from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trials.bench.serve.arrivals import arrivals
from trials.bench.serve.rows import RequestTimes, row_of


def test_arrivals_come_at_the_rate_and_independently_of_each_other() -> None:
    due = list(itertools.islice(arrivals(50.0, seed=3), 20_001))
    gaps = [later - earlier for earlier, later in itertools.pairwise(due)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.03), "as an exponential distribution has it"
    assert due == list(itertools.islice(arrivals(50.0, seed=3), 20_001))


@given(st.integers())
def test_without_a_rate_all_arrive_at_once(seed: int) -> None:
    assert set(itertools.islice(arrivals(None, seed), 10)) == {0.0}


def test_a_row_has_the_times_as_their_clients_felt_them() -> None:
    whole = RequestTimes(
        due=10.0, chunks=(10.5, 10.6, 10.9), ended=11.0, num_prompt_tokens=7, num_output_tokens=6, problem=None
    )
    row = row_of([whole, RequestTimes(due=9.0, ended=9.5, problem="HTTP 429")])
    assert (row.completed, row.failed, row.duration_s) == (1, {"HTTP 429": 1}, 2.0)
    assert (row.request_throughput, row.output_throughput) == (0.5, 3.0)
    assert row.ttft_ms.median == pytest.approx(500)
    assert row.tpot_ms.median == pytest.approx(100), "five tokens came in the half second after the first"
    assert row.itl_ms.mean == pytest.approx(200)
    assert row.e2el_ms.p99 == pytest.approx(1000)
