"""Which microbatches and which sessions have drafts, how many, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.structured_outputs import GrammarSettings
from broker_pipeline.scheduling.drafts.limits import DraftLimits
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import PlannedSegment
from broker_pipeline.scheduling.policies.drafting import Drafting, may_have_drafts
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import SessionState
from tests.kit.simulated.simulation import Simulation
from tests.kit.simulated.stages import prompt_of, stage_worker

NUM_PROMPT = 10
SAID = [1, 2, 3, 1, 2, 3]
ROUTE = Route((stage_worker("a", 0, 2), stage_worker("b", 2, 4)))


def session(name: str = "s", *, room: int = 30, most: int = 30, **changes: object) -> SessionState:
    state = SessionState(
        key=SessionKey(name, 1), order=0, route=ROUTE, prompt=prompt_of(NUM_PROMPT),
        sampling=SamplingSettings(**changes), num_kv_tokens=NUM_PROMPT + most, generated=list(SAID),
    )  # fmt: skip
    state.num_reserved_tokens = NUM_PROMPT + room
    state.num_computed_tokens = state.num_tokens - 1
    return state


def step(state: SessionState) -> PlannedSegment:
    return PlannedSegment(state, state.num_computed_tokens, 1, wants_token=True)


def drafts_of(*segments: PlannedSegment, limits: DraftLimits, route: Route = ROUTE, most: int = 99) -> list[int]:
    extended = Drafting(limits).extended(segments, route, most)
    assert all(each.count == before.count + len(each.drafts) for each, before in zip(extended, segments, strict=True))
    return [len(each.drafts) for each in extended]


def test_a_session_goes_on_as_before() -> None:
    (segment,) = Drafting(DraftLimits(3)).extended((step(session()),), ROUTE, 99)
    assert (segment.start, segment.count, segment.drafts) == (NUM_PROMPT + 5, 4, (1, 2, 3))


@pytest.mark.parametrize(("room", "most", "num_drafts"), [(30, 30, 4), (8, 30, 2), (6, 30, 0), (30, 8, 1), (30, 7, 0)])
def test_drafts_fit_into_kv_and_into_the_output(room: int, most: int, num_drafts: int) -> None:
    """Six tokens are known; of eight in all, a draft and what follows it are the last."""
    assert drafts_of(step(session(room=room, most=most)), limits=DraftLimits(9)) == [num_drafts]


def test_drafts_fit_into_the_microbatch() -> None:
    segments = [step(session(name)) for name in "abc"]
    assert drafts_of(*segments, limits=DraftLimits(4, max_sessions=3), most=8) == [4, 1, 0]


def test_many_sessions_have_none() -> None:
    segments = [step(session(name)) for name in "abc"]
    assert drafts_of(*segments, limits=DraftLimits(4, max_sessions=2)) == [0, 0, 0]


def test_a_microbatch_with_a_prompt_has_none() -> None:
    prompt = PlannedSegment(session("p"), 0, 5, wants_token=False)
    assert drafts_of(prompt, step(session()), limits=DraftLimits(4, max_sessions=2)) == [0, 0]


def test_a_stage_of_an_earlier_release_is_sent_none() -> None:
    old = replace(ROUTE.workers[1], verifies_drafts=False)
    assert drafts_of(step(session()), limits=DraftLimits(4), route=Route((ROUTE.workers[0], old))) == [0]


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        (SamplingSettings(), True),
        (SamplingSettings(temperature=1.0, seed=3, top_p=0.5, logprobs=3), True),
        (SamplingSettings(min_tokens=9, end_token_ids=(1,), logit_bias={3: 2.0}, bad_word_ids=((4,),)), True),
        (SamplingSettings(repetition_penalty=1.1), False),
        (SamplingSettings(presence_penalty=0.1), False),
        (SamplingSettings(frequency_penalty=0.1), False),
        (SamplingSettings(no_repeat_ngram_size=2), False),
        (SamplingSettings(bad_word_ids=((4, 5),)), False),
        (SamplingSettings(grammar=GrammarSettings(source="{}")), False),
    ],
)
def test_a_sampler_that_needs_the_tokens_before_has_none(settings: SamplingSettings, may: bool) -> None:
    assert may_have_drafts(session(**msgspec.structs.asdict(settings))) == may


def test_a_suspect_has_none() -> None:
    suspect = session()
    suspect.is_alone = True
    assert not may_have_drafts(suspect)


@pytest.mark.parametrize(
    ("num_tokens", "asked", "num_sessions"), [(1, None, 8), (3, None, 4), (40, None, 1), (3, 9, 9)]
)
def test_as_many_sessions_as_a_cheap_step_holds(num_tokens: int, asked: int | None, num_sessions: int) -> None:
    assert DraftLimits.of(num_tokens, asked).max_sessions == num_sessions


@pytest.mark.parametrize("cut", [[("a", 0, 4)], [("a", 0, 1), ("b", 1, 2), ("c", 2, 4)]], ids=["one", "three"])
def test_few_sessions_say_the_same_in_fewer_steps(cut: list[tuple[str, int, int]]) -> None:
    """Tokens of the simulated model take turns, but for each eleventh: drafts are right, and wrong."""
    num_steps = {}
    for num_drafts in (0, 6):
        limits = SchedulerLimits(kv_step_tokens=16, drafts=DraftLimits(num_drafts, max_sessions=2))
        simulation = Simulation(limits=limits)
        for name, start, stop in cut:
            simulation.start_worker(name, start, stop, kv=300)
        simulation.submit(7, 120)
        num_steps[num_drafts] = 0
        while not all(job.outcome for job in simulation.jobs.values()):
            simulation.plan()
            num_steps[num_drafts] += 1
            simulation.deliver(simulation.network[0])
        simulation.run()
        simulation.check_ended()
        drafting = simulation.scheduler.batches.drafting
        assert (0 < drafting.num_accepted < drafting.num_drafted) == bool(num_drafts)
    assert num_steps[0] == 120
    assert num_steps[6] < 80
