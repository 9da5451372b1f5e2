import msgspec
import pytest

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.structured_outputs import GrammarSettings, StructuredOutputs
from broker_pipeline.model_facts import GenerationDefaults
from broker_pipeline.scheduling.policies.sampling import (
    as_asked,
    bad_word_ids,
    check_token_ids,
    end_token_ids,
    of_output,
    resolve_sampling,
    seed_of,
)
from export.synthetic.tiny_tokenizer import tiny_tokenizer

INSTRUCT = GenerationDefaults(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)


def test_open_fields_take_the_models_defaults() -> None:
    settings = resolve_sampling(SamplingParams(), INSTRUCT, "j")
    assert (settings.temperature, settings.top_p, settings.top_k, settings.repetition_penalty) == (0.7, 0.8, 20, 1.05)
    assert (settings.min_p, settings.presence_penalty, settings.frequency_penalty) == (0.0, 0.0, 0.0)


def test_every_penalty_may_come_from_the_model() -> None:
    defaults = msgspec.convert(
        {"presence_penalty": 1.5, "frequency_penalty": 0.25, "no_repeat_ngram_size": 4}, GenerationDefaults
    )
    settings = resolve_sampling(SamplingParams(frequency_penalty=0.0), defaults, "j")
    assert (settings.presence_penalty, settings.frequency_penalty, settings.no_repeat_ngram_size) == (1.5, 0.0, 4)


def test_ends_are_masked_only_where_an_output_must_be_long() -> None:
    for asked, expected in (({}, ()), ({"min_tokens": 3}, (7, 8, 9)), ({"min_tokens": 3, "ignore_eos": True}, (9,))):
        params = SamplingParams(stop_token_ids=(9,), **asked)  # type: ignore[arg-type]
        ends = end_token_ids(params, (7, 8))
        assert resolve_sampling(params, INSTRUCT, "j", end_token_ids=ends).end_token_ids == expected


def test_a_bad_word_is_meant_with_a_space_before_it_and_without() -> None:
    tokenizer = tiny_tokenizer()

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    for word in ("dog", " dog"):
        assert set(bad_word_ids([word], encode)) == {encode("dog"), encode(" dog")}
    assert encode("  dog") in bad_word_ids(["  dog"], encode)
    assert bad_word_ids([" "], encode) == (encode(" "),)


@pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
def test_a_token_that_the_model_does_not_have_is_named(name: str) -> None:
    values = {"logit_bias": {5: 1.0, 100: 1.0}, "stop_token_ids": (3, 100)}
    params = SamplingParams(**{name: values[name]})  # type: ignore[arg-type]
    check_token_ids(params, 101)
    with pytest.raises(InvalidRequestError, match="no token 100") as caught:
        check_token_ids(params, 100)
    assert caught.value.field == f"sampling.{name}"


@pytest.mark.parametrize("stop", [None, "a", ["a"], ["a", "b"], []])
def test_stop_is_a_string_a_list_or_null(stop: object) -> None:
    expected = ("a",) if stop == "a" else tuple(stop or ())  # type: ignore[arg-type]
    assert msgspec.convert({"stop": stop}, SamplingParams).stop_strings == expected


def test_a_request_is_the_same_however_it_is_written() -> None:
    written = ({"stop": "a", "logit_bias": {"5": 1, "3": 2}}, {"logit_bias": {"3": 2.0, "5": 1.0}, "stop": ["a"]})
    one, other = (msgspec.json.decode(msgspec.json.encode(text), type=SamplingParams) for text in written)
    assert one == other
    assert msgspec.json.encode(one) == msgspec.json.encode(other)


def test_a_shortest_output_beyond_the_longest_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid field `min_tokens`: larger"):
        msgspec.convert({"min_tokens": 9, "max_tokens": 8}, SamplingParams)


def test_what_the_user_says_stands_even_where_it_is_zero() -> None:
    asked = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=0, logprobs=0)
    settings = resolve_sampling(asked, INSTRUCT, "j")
    assert (settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty) == (0.0, 0, 1.0, 1.0)
    assert (settings.seed, settings.logprobs) == (0, 0)


def test_each_of_several_outputs_has_its_seed() -> None:
    def seed(asked: int | None, choice: int) -> int:
        return of_output(choice, resolve_sampling(SamplingParams(seed=asked), INSTRUCT, "j")).seed

    assert [seed(5, choice) for choice in range(3)] == [5, 6, 7]
    assert [seed(2**63 - 1, choice) for choice in range(2)] == [2**63 - 1, -(2**63)]
    assert seed(None, 2) == seed_of("j") + 2


def test_a_model_that_does_not_sample_is_greedy_unless_asked() -> None:
    for defaults in (GenerationDefaults(do_sample=False, temperature=0.7), GenerationDefaults()):
        assert resolve_sampling(SamplingParams(), defaults, "j").temperature == 0.0
        assert resolve_sampling(SamplingParams(temperature=0.5), defaults, "j").temperature == 0.5
    assert resolve_sampling(SamplingParams(), GenerationDefaults(do_sample=True), "j").temperature == 1.0


def test_seeds_differ_by_job_stay_the_same_and_fit_the_contract() -> None:
    seeds = {seed_of(f"job-{number}") for number in range(1000)}
    assert len(seeds) == 1000
    assert min(seeds) < 0 < max(seeds)
    settings = resolve_sampling(SamplingParams(), INSTRUCT, "job-1")
    assert settings.seed == seed_of("job-1")
    assert msgspec.json.decode(msgspec.json.encode(settings), type=type(settings)) == settings


def test_what_a_job_obeyed_is_told_in_the_words_that_it_could_be_asked_for_by() -> None:
    asked = SamplingParams(max_tokens=9, min_tokens=2, bad_words=("cat",), stop=("END",), logit_bias={3: 1.0})
    settings = resolve_sampling(asked, INSTRUCT, "j", end_token_ids=(7,), bad_word_ids=((1, 2), (3,)))
    told = as_asked(asked, settings)
    assert (told.bad_words, told.stop, told.min_tokens, told.logit_bias) == (("cat",), ("END",), 2, {3: 1.0})
    assert told.seed == seed_of("j")
    assert told.max_tokens is None
    assert resolve_sampling(told, INSTRUCT, "k", end_token_ids=(7,), bad_word_ids=((1, 2), (3,))) == settings
    assert as_asked(SamplingParams(), resolve_sampling(SamplingParams(), INSTRUCT, "j")).logit_bias is None


def test_a_grammar_holds_from_where_the_answer_begins() -> None:
    settings = resolve_sampling(SamplingParams(), INSTRUCT, "j", grammar=GrammarSettings(source="x"))
    assert settings.needs_history, "a session that moves takes its tokens again"
    assert of_output(1, settings).grammar == GrammarSettings(source="x")
    assert of_output(1, settings, answer_begins_after=5).grammar == GrammarSettings(source="x", begins_after=5)
    assert of_output(1, resolve_sampling(SamplingParams(), INSTRUCT, "j"), answer_begins_after=5).grammar is None
    asked = SamplingParams(structured_outputs=StructuredOutputs(choice=("a",)))
    assert as_asked(asked, settings).structured_outputs == asked.structured_outputs
