"""What is asked of an answer is checked before a job exists, and the wrong field is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from llguidance import LLMatcher, LLTokenizer

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.grammars.rule import check_structured_outputs, grammar_source
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.structured_outputs import MAX_GRAMMAR_CHARS, StructuredOutputs


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


RIGHT: list[dict[str, Any]] = [
    {"json": True},
    {"json": {}},
    {"json": {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "integer"}}}},
    {"json": nested(20)},
    {"regex": "[a-z]+/[0-9]{2,4}"},
    {"choice": ["cat", 'a "dog"\n', "é\\", "{"]},
    {"grammar": 'start: "a" start | "b"'},
]

WRONG: list[dict[str, Any]] = [
    {"json": {"type": "nonsense"}},
    {"json": {"type": "string", "pattern": "("}},
    {"json": {"not": {"type": "string"}}},
    {"json": {"$ref": "#/$defs/nowhere"}},
    {"json": {"$ref": "http://example.com/schema.json"}},
    {"json": {"enum": []}},
    {"json": nested(200)},
    {"json": {"description": "x" * MAX_GRAMMAR_CHARS}},
    {"regex": "(a"},
    {"regex": "(?=a)b"},
    {"regex": "(" * 5000 + "a" + ")" * 5000},
    {"choice": ["x" * 4000] * 20},
    {"grammar": "start: nowhere"},
    {"grammar": '{"grammars": []}'},
    {"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000},
]


@pytest.mark.parametrize("asked", RIGHT, ids=lambda asked: str(asked)[:40])
def test_what_is_accepted(asked: dict[str, Any]) -> None:
    check_structured_outputs(msgspec.convert(asked, StructuredOutputs))


@pytest.mark.parametrize("asked", WRONG, ids=lambda asked: str(asked)[:40])
def test_what_the_library_refuses_names_its_field(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_structured_outputs(msgspec.convert(asked, StructuredOutputs), "request.sampling.structured_outputs")
    assert refused.value.field == f"request.sampling.structured_outputs.{next(iter(asked))}"
    assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"structured_outputs": {}}, "json"),
        ({"structured_outputs": {"json": False}}, "json"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "choice"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_exactly_one_is_asked_for(sampling: dict[str, Any], field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"Invalid field `{field}`"):
        msgspec.convert(sampling, SamplingParams)


@pytest.mark.parametrize(("own", "is_all"), [({}, False), ({"x-guidance": {"whitespace_flexible": True}}, True)])
def test_white_space_has_a_bound_unless_the_schema_sets_its_own(own: dict[str, Any], *, is_all: bool) -> None:
    asked = StructuredOutputs(json={"type": "object", "properties": {"a": {"type": "integer"}}} | own)
    tokenizer = LLTokenizer("byte")

    def is_taken(text: str) -> bool:
        tokens = tokenizer.tokenize_str(text)
        return LLMatcher(tokenizer, grammar_source(asked)).try_consume_tokens(tokens) == len(tokens)

    assert is_taken('{\n    "a" : 1\n}')
    assert is_taken("{" + 40 * " " + '"a": 1}') == is_all
