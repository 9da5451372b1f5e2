import msgspec

from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.model_facts import GenerationDefaults
from broker_pipeline.scheduling.policies.sampling import resolve_sampling, seed_of

INSTRUCT = GenerationDefaults(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)


def test_open_fields_take_the_models_defaults() -> None:
    settings = resolve_sampling(SamplingParams(), INSTRUCT, "j")
    assert (settings.temperature, settings.top_p, settings.top_k, settings.repetition_penalty) == (0.7, 0.8, 20, 1.05)
    assert (settings.min_p, settings.presence_penalty, settings.frequency_penalty) == (0.0, 0.0, 0.0)


def test_what_the_user_says_stands_even_where_it_is_zero() -> None:
    asked = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=0, logprobs=0)
    settings = resolve_sampling(asked, INSTRUCT, "j")
    assert (settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty) == (0.0, 0, 1.0, 1.0)
    assert (settings.seed, settings.logprobs) == (0, 0)


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
