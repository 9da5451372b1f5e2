"""Sessions that begin with KV of others: what counts as the same, who waits, and what is given up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from broker_pipeline.messages.activation import VisualSpan
from broker_pipeline.messages.jobs import Turn
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.policies.prefixes import BLOCK_TOKENS, PrefixTable, prefix_keys
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import PreparedPrompt, SessionState
from tests.kit.simulated.simulation import Simulation
from tests.kit.simulated.stages import prompt_of, stage_worker

ROUTE = Route((stage_worker("a", 0, 4),))
SPAN = VisualSpan(offset=20, count=40, row=0)


def prompt(*, content: str = "cat", question: int = 1) -> PreparedPrompt:
    """Return 100 tokens, of which 40 are a picture's; the last ten are a question."""
    ids = np.arange(100, dtype=np.int32)
    ids[90:] = question
    return PreparedPrompt(ids, np.stack([ids, ids, ids]), 0, (SPAN,), (content,))


def session(name: str, of: PreparedPrompt, *, is_batch: bool = False, is_repeat: bool = False) -> SessionState:
    return SessionState(
        key=SessionKey(name, 1),
        order=0,
        route=ROUTE,
        prompt=of,
        sampling=SamplingSettings(),
        num_kv_tokens=200,
        turn=Turn(is_batch),
        is_repeat=is_repeat,
        prefix_keys=prefix_keys(of, "tenant"),
    )


def table_of(*sessions: SessionState) -> PrefixTable:
    table = PrefixTable(is_used=True)
    for each in sessions:
        table.add(each)
    return table


def num_equal(one: PreparedPrompt, other: PreparedPrompt, tenants: tuple[str, str] = ("t", "t")) -> int:
    keys = zip(prefix_keys(one, tenants[0]), prefix_keys(other, tenants[1]), strict=True)
    return [first == second for first, second in keys].count(True)


def test_a_prompt_has_a_key_for_each_whole_block() -> None:
    assert len(prefix_keys(prompt(), "t")) == 100 // BLOCK_TOKENS == 6


@pytest.mark.parametrize(
    ("other", "num_blocks"),
    [
        (prompt(), 6),
        (prompt(question=2), 5),
        (prompt(content="dog"), 1),
        (replace(prompt(), token_ids=prompt().token_ids + 1), 0),
        (replace(prompt(), positions=prompt().positions + 1), 0),
        (replace(prompt(), visual=(VisualSpan(offset=20, count=39, row=0),)), 1),
    ],
    ids=["same", "question", "picture", "tokens", "positions", "span"],
)
def test_keys_are_equal_up_to_the_first_difference(other: PreparedPrompt, num_blocks: int) -> None:
    assert num_equal(prompt(), other) == num_blocks


def test_tenants_share_nothing() -> None:
    assert num_equal(prompt(), prompt(), ("t", "u")) == 0


def test_rows_of_unknown_content_end_the_keys() -> None:
    """As of vision workers of an earlier release."""
    assert len(prefix_keys(replace(prompt(), visual_content=()), "t")) == 1


def test_what_another_has_computed_is_copied_and_a_token_is_left() -> None:
    first, second = session("a", prompt()), session("b", prompt())
    table = table_of(first, second)
    table.begin(first)
    assert first.prefix is None
    first.num_computed_tokens = 100
    assert not table.waits(second)
    table.begin(second)
    assert second.prefix == (first.key, 96, 40)
    assert second.num_computed_tokens == 96


def test_the_last_token_is_always_computed() -> None:
    first, second = session("a", prompt_of(96)), session("b", prompt_of(96))
    table = table_of(first, second)
    table.begin(first)
    first.num_computed_tokens = 96
    table.begin(second)
    assert second.prefix is not None
    assert second.prefix.num_tokens == 80


def test_who_is_being_computed_is_waited_for_and_who_was_not_sent_is_not() -> None:
    first, second, third = session("a", prompt()), session("b", prompt(question=2)), session("c", prompt(question=3))
    table = table_of(first, second, third)
    table.begin(third)
    assert third.prefix is None
    assert table.waits(first)
    assert table.waits(second)
    third.num_computed_tokens = 100
    assert not table.waits(second)
    table.begin(second)
    assert second.prefix == (third.key, 80, 40)


def test_those_who_wait_do_not_keep_what_they_wait_for_from_going_on() -> None:
    """They would fill a microbatch by themselves."""
    simulation = Simulation(shares_prefixes=True)
    simulation.start_worker("a", 0, 4, kv=4000, batch=80)
    jobs = [simulation.submit(300, 2) for _ in range(6)]
    simulation.run(200)
    assert {job.outcome for job in jobs} == {"succeeded"}
    assert simulation.scheduler.batches.num_prompt_tokens == 6 * 300
    assert simulation.scheduler.batches.num_copied_tokens >= 5 * (288 - 4 * BLOCK_TOKENS)


def test_an_interactive_job_waits_for_no_batch_job() -> None:
    batch, interactive = session("a", prompt(), is_batch=True), session("b", prompt())
    table = table_of(batch, interactive)
    table.begin(batch)
    assert not table.waits(interactive)
    table.begin(interactive)
    assert interactive.prefix is None


def test_a_replay_and_a_route_that_cannot_copy_compute_everything() -> None:
    first, again = session("a", prompt()), session("b", prompt(), is_repeat=True)
    table = table_of(first, again)
    table.begin(first)
    first.num_computed_tokens = 100
    assert not table.waits(again)
    table.begin(again)
    assert again.prefix is None
    unable = PrefixTable(is_used=False)
    unable.add(first)
    second = session("c", prompt())
    assert not unable.waits(second)
    unable.begin(second)
    assert second.prefix is None
    unable.remove(first)


def test_of_who_is_gone_nothing_is_copied() -> None:
    first, second = session("a", prompt()), session("b", prompt())
    table = table_of(first, second)
    table.begin(first)
    first.num_computed_tokens = 100
    table.remove(first)
    assert not table.waits(second)
    table.begin(second)
    assert second.prefix is None


def test_a_source_that_ends_meanwhile_stays_open_until_the_copy_is_answered() -> None:
    """Its close may overtake the envelope that has it copied."""
    simulation = Simulation(shares_prefixes=True)
    simulation.start_worker("a", 0, 4, kv=2000, batch=400)
    first = simulation.submit(100, 50)
    simulation.plan()
    simulation.deliver(simulation.network[0])
    second = simulation.submit(120, 3)
    planned = simulation.plan()
    opening = next(each for each in planned if any(segment.opens for segment in each.segments))
    assert opening.num_tokens <= 25  # 24 of its own, where it has 120
    simulation.cancel(first)
    later = simulation.plan()
    assert all(not each.closes for each in later)
    for each in reversed([*later, opening]):
        simulation.deliver(each)
    simulation.run()
    assert second.outcome == "succeeded"
    assert second.num_lost == 0
    simulation.check_ended()
