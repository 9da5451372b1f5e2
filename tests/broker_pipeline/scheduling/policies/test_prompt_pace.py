import math

import pytest

from broker_pipeline.scheduling.policies.prompt_pace import PromptPace


def test_nothing_is_held_back_before_a_session_has_ended() -> None:
    assert PromptPace().num_tokens(10) == math.inf


def test_sessions_begin_a_quarter_faster_than_they_end() -> None:
    pace = PromptPace()
    for _ in range(100):
        pace.observe(num_prompt_tokens=200, num_output_tokens=50)
    # 500 sessions with a token each: ten of them end, and twelve and a half begin
    assert pace.num_tokens(500) == pytest.approx(12.5 * 200)


def test_it_follows_when_outputs_become_shorter() -> None:
    pace = PromptPace()
    for num_output_tokens in (1000,) * 500 + (10,) * 1000:
        pace.observe(200, num_output_tokens)
    assert pace.num_tokens(1) == pytest.approx(1.25 * 20, rel=0.05)
