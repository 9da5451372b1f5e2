"""A model of random weights, sampled wildly, says nothing but what its schema allows; wherever it is cut or moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import jsonschema
import pytest

from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from export.synthetic.tiny_tokenizer import tiny_tokenizer
from stages.compute.generate import Request, WholeModel
from tests.kit.models.grammar_kit import FACTS, SCHEMAS, grammar_settings, grammars
from tests.kit.models.tiny_stages import build_stages, tiny_config, tiny_tensors

TOKENIZER = tiny_tokenizer()
WILD = {"temperature": 1.5}
NUM_SEEDS = 2


@cache
def model(*cuts: int) -> WholeModel:
    return WholeModel(build_stages(tiny_config(), tiny_tensors(), cuts, grammars=grammars(), kv_capacity_tokens=16_384))


def request(number: int, settings: SamplingSettings, max_tokens: int = 300, **changes: Any) -> Request:
    prompt = tuple(TOKENIZER.encode(f"Describe picture {number}.").ids)
    return Request(
        f"s{number}", prompt, sampling=settings, max_tokens=max_tokens, eos_token_ids=FACTS.eos_token_ids, **changes
    )


def ids_of(tokens: Sequence[SampledToken]) -> list[int]:
    return [token.token_id for token in tokens]


def text_of(tokens: Sequence[SampledToken]) -> str:
    assert tokens[-1].token_id in FACTS.eos_token_ids, "complete"
    return TOKENIZER.decode(ids_of(tokens)[:-1], skip_special_tokens=False)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:40])
def test_every_output_parses_and_fulfils_its_schema(schema: dict[str, Any]) -> None:
    grammar = grammar_settings(json=schema)
    requests = [request(seed, SamplingSettings(**WILD, seed=seed, grammar=grammar)) for seed in range(NUM_SEEDS)]
    texts = [text_of(tokens) for tokens in model().generate(requests)]
    for text in texts:
        jsonschema.validate(json.loads(text), schema)


def test_an_object_is_any_object() -> None:
    settings = SamplingSettings(temperature=1.0, top_k=5, grammar=grammar_settings(json=True))
    [tokens] = model().generate([request(0, settings, max_tokens=60)])
    text = TOKENIZER.decode(ids_of(tokens))
    assert text.lstrip().startswith("{")


MIXED = [
    SamplingSettings(**WILD, seed=1, logprobs=3, grammar=grammar_settings(json=SCHEMAS[6])),
    SamplingSettings(**WILD, seed=2),
    SamplingSettings(grammar=grammar_settings(json=SCHEMAS[5]), logprobs=0),
    SamplingSettings(
        **WILD, seed=3, grammar=grammar_settings(regex="[a-e]{8}"), no_repeat_ngram_size=1, presence_penalty=1.0
    ),
    SamplingSettings(**WILD, seed=4, top_p=0.9, top_k=20, grammar=grammar_settings(choice=["cat", "dog", "house"])),
]


def test_stages_and_company_make_no_difference() -> None:
    requests = [request(number, settings, max_tokens=30) for number, settings in enumerate(MIXED)]
    together = model().generate(requests)
    expected = [ids_of(tokens) for tokens in together]
    assert [ids_of(tokens) for tokens in model(2, 4).generate(requests, chunk_tokens=5)] == expected
    assert [ids_of(model(3).generate([each])[0]) for each in requests] == expected
    for token in together[0]:
        assert token.top[0].logprob > -100
        assert token.logprob is not None, "of what the grammar leaves"
        assert token.logprob > -100, "of what the grammar leaves"


@pytest.mark.parametrize("number", [0, 3])
def test_a_session_that_moves_says_the_same_to_the_byte(number: int) -> None:
    asked = request(number, MIXED[number], max_tokens=60)
    [whole] = model().generate([asked])
    for num_done in (0, 1, len(whole) // 2, len(whole) - 1):
        done = tuple(ids_of(whole[:num_done]))
        moved = request(number, MIXED[number], max_tokens=60, generated=done, attempt=2)
        assert ids_of(model(1, 4).generate([moved])[0]) == ids_of(whole[num_done:])


def test_other_settings_give_way_where_they_would_leave_nothing() -> None:
    """An end before `min_tokens`, a bad word that is the only answer, a token that may not come twice."""
    word = tuple(TOKENIZER.encode("c").ids)
    settings = SamplingSettings(
        grammar=grammar_settings(regex="ccc|ccd"),
        min_tokens=50,
        end_token_ids=FACTS.eos_token_ids,
        bad_word_ids=(word,),
        no_repeat_ngram_size=1,
        logit_bias={word[0]: -100.0},
    )
    [tokens] = model().generate([request(0, settings)])
    assert text_of(tokens) == "ccd", "the masks hold where the grammar leaves a choice"


def test_constraining_starts_after_the_reasoning() -> None:
    end = TOKENIZER.token_to_id("</think>")
    grammar = grammar_settings(choice=["yes", "no"], begins_after=end)
    settings = SamplingSettings(**WILD, seed=5, grammar=grammar, logit_bias={end: 4.0, FACTS.eos_token_ids[0]: 8.0})
    [tokens] = model().generate([request(0, settings)])
    ids = ids_of(tokens)
    begin = ids.index(end)
    assert begin > 0
    assert TOKENIZER.decode(ids[begin + 1 : -1]) in {"yes", "no"}
    [rest] = model(2).generate([request(0, settings, generated=tuple(ids[: begin + 2]), attempt=2)])
    assert ids_of(rest) == ids[begin + 2 :]
