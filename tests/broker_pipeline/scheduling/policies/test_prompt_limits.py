import pytest

from broker_pipeline.errors import PromptTooLongError
from broker_pipeline.scheduling.policies.prompt_limits import PromptLimits


def limits(asked: int | None, model: int = 1000, kv: int = 400) -> PromptLimits:
    return PromptLimits(asked, 64, model, kv)


def test_the_smaller_of_model_and_kv_counts() -> None:
    assert limits(None).max_prompt_tokens == 399
    assert limits(100).max_prompt_tokens == 300
    assert limits(100, model=200).max_prompt_tokens == 100


@pytest.mark.parametrize(("asked", "num_prompt", "expected"), [(None, 10, 64), (None, 380, 20), (100, 300, 100)])
def test_only_an_unasked_limit_is_cut_to_what_fits(asked: int | None, num_prompt: int, expected: int) -> None:
    assert limits(asked).max_tokens(num_prompt) == expected


@pytest.mark.parametrize(("asked", "num_prompt", "words"), [(100, 301, "100 output tokens"), (None, 400, "an output")])
def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(asked: int | None, num_prompt: int, words: str) -> None:
    with pytest.raises(PromptTooLongError, match=f"{num_prompt} tokens, and with {words}.*room for 400") as caught:
        limits(asked).max_tokens(num_prompt)
    assert caught.value.field == "messages"


def test_an_output_that_leaves_no_room_for_a_prompt_is_refused_at_once() -> None:
    with pytest.raises(PromptTooLongError, match="the model takes 300") as caught:
        limits(300, model=300)
    assert caught.value.field == "sampling.max_tokens"


@pytest.mark.parametrize(
    ("room", "default", "reasoning"),
    [(2_048, 512, 2_038), (340_000, 1_328, 10_624), (10**7, 4_096, 32_768)],
    ids=["small", "a share", "large"],
)
def test_where_nobody_says_the_default_is_a_share_of_the_room(room: int, default: int, reasoning: int) -> None:
    found = PromptLimits(None, None, 10**7, room)
    assert found.max_tokens(10) == default
    assert found.max_tokens(10, is_reasoning=True) == reasoning
    assert found.max_tokens(room - 20) == found.max_tokens(room - 20, is_reasoning=True) == 20


def test_what_is_stated_holds_with_reasoning_too() -> None:
    assert limits(None).max_tokens(10, is_reasoning=True) == 64
    assert limits(100).max_tokens(10, is_reasoning=True) == 100


def test_what_is_shown_is_what_jobs_get() -> None:
    shown = PromptLimits(None, None, 262_144, 20_000).shown()
    assert (shown.max_tokens_in_all, shown.max_position_embeddings) == (20_000, 262_144)
    assert (shown.default_max_tokens, shown.default_max_tokens_reasoning) == (512, 4_096)
