"""What is counted, and that it takes no more memory for more of it."""

from __future__ import annotations

import random

import pytest

from broker_pipeline.captioning.report.answer_tally import AnswerTally
from broker_pipeline.captioning.report.chart import chart_of
from broker_pipeline.captioning.report.durations import Durations
from broker_pipeline.captioning.report.failure_tally import FailureTally
from broker_pipeline.captioning.report.frequent import Frequent
from broker_pipeline.captioning.report.histogram import Histogram
from broker_pipeline.captioning.report.repetitions import Repetitions
from broker_pipeline.captioning.report.row_tally import Judgement, RowTally
from broker_pipeline.captioning.summary import Summary
from tests.broker_pipeline.captioning.report.rows import failed, line, row


def histogram(*numbers: int) -> Histogram:
    made = Histogram()
    for number in numbers:
        made.add(number)
    return made


def test_bars_have_round_bounds_and_every_number() -> None:
    bars = histogram(*range(7, 107)).bars()
    assert [bar.label for bar in bars[:2]] == ["0–9", "10–19"]  # noqa: RUF001 - a range
    assert [bar.num for bar in bars] == [3, *[10] * 9, 7]


def test_few_large_numbers_share_the_last_bar() -> None:
    bars = histogram(*range(20), *range(20), *range(20), *[9000] * 2).bars()
    assert (bars[-1].label, bars[-1].num) == ("40 or more", 2)
    assert sum(bar.num for bar in bars) == 62


@pytest.mark.parametrize("numbers", [(0,), (5, 5), (10**9,), (0, 10**9), tuple(range(10_000))])
def test_a_chart_stays_in_its_frame(numbers: tuple[int, ...]) -> None:
    chart = chart_of(histogram(*numbers))
    assert sum(bar.num for bar in chart.bars) == len(numbers)
    assert all(bar.left >= 0 and bar.left + bar.width <= 100 and 0 <= bar.height <= 100 for bar in chart.bars)
    assert len(chart.bars) <= 21
    assert 1 <= len(chart.ticks) <= 6


def test_durations_are_known_within_half_a_percent() -> None:
    durations = Durations()
    for hundredths in range(1, 1001):
        durations.add(hundredths / 100)
    durations.add(None)
    durations.add(float("nan"))
    assert durations.num == 1000
    assert durations.quantile(0.5) == pytest.approx(5.0, rel=0.006)
    assert durations.quantile(0.9) == pytest.approx(9.0, rel=0.006)


def test_the_most_frequent_are_found_among_many() -> None:
    frequent, things = Frequent[str](capacity=20), random.Random(1)
    for number in things.sample(range(6000), 6000):
        frequent.add("often" if number < 1000 else "at times" if number < 1600 else f"once {number}")
    (first, num), (second, _) = frequent.top(2)
    assert (first, second) == ("often", "at times")
    assert num <= 1000 <= num + frequent.most_missed
    assert frequent.most_missed <= 6000 / 20


def test_repetitions_are_exact_and_then_estimated() -> None:
    exact, estimated = Repetitions(), Repetitions(capacity=2000)
    for number in range(20_000):
        for repetitions in (exact, estimated):
            repetitions.add(f"caption {number % 15_000}")
    assert exact.is_exact
    assert exact.share == 0.25
    assert not estimated.is_exact
    assert estimated.share == pytest.approx(0.25, abs=0.03)


def test_captions_of_the_same_content_say_nothing_about_the_model() -> None:
    tally = AnswerTally()
    for same_as in (None, "a.png", "a.png"):
        tally.add(line(same_as=same_as))
    assert (tally.num_captions, tally.num_copied, tally.words.num) == (3, 2, 3)
    assert (tally.tokens.num, tally.running.num, tally.finish_reasons.total()) == (1, 1, 1)
    assert tally.openings.top(2) == [("a red bicycle", 1)]
    assert tally.repetitions.share == 0


def test_the_first_five_prompts_are_kept() -> None:
    tally = AnswerTally()
    for number in range(9):
        tally.add(line(prompt=f"{number % 7}?"))
    assert tally.prompts == ["0?", "1?", "2?", "3?", "4?"]
    assert tally.has_more_prompts


def test_an_item_counts_by_the_worst_of_its_answers() -> None:
    tally = RowTally()
    good, bad = line(question="a"), failed(question="b")
    dropped = line(question="b", caption=None, status="dropped", guard="too short")
    for lines in ((good,), (good, bad), (good, dropped), (dropped, failed(question="a")), (line(guard="too long"),)):
        tally.add(row(*lines))
    assert (tally.num_items, tally.num_captioned, tally.num_dropped, tally.num_failed) == (5, 2, 1, 2)
    assert tally.num_marked == 1
    assert dict(tally.guards.top(5)) == {Judgement("too short", "dropped"): 2, Judgement("too long", "succeeded"): 1}


def test_failures_have_reasons_and_examples() -> None:
    tally = FailureTally()
    for number in range(100):
        tally.add(f"{number}.png", failed(code="compute" if number % 2 else f"code {number}"))
    first, *others = tally.reasons()
    assert (first.code, first.num) == ("compute", 50)
    assert [example.id for example in first.examples] == ["1.png", "3.png", "5.png"]
    assert (len(others), tally.num_others) == (19, 31)


def test_failures_of_one_code_are_apart_by_reason_and_not_by_what_is_an_items_own() -> None:
    tally, summary = FailureTally(), Summary()
    messages = [f"/pictures/{n}.png: No such file" for n in range(5)] + [
        f"line {n} is no JSON object" for n in range(3)
    ]
    for number, message in enumerate(messages):
        failure = failed(code="unreadable_file", message=message)
        tally.add(f"{number}.png", failure)
        summary.count([failure])
    assert [(reason.code, reason.num) for reason in tally.reasons()] == [("unreadable_file", 5), ("unreadable_file", 3)]
    assert [(each.message, each.num) for each in summary.failures.values()] == [(messages[0], 5), (messages[5], 3)]
