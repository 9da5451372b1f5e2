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
