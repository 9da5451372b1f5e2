"""Grammars for tests: a compiler with the tokenizer of the tiny models, and what an answer may look like."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import numpy as np

from broker_pipeline.grammars.rule import grammar_source
from broker_pipeline.messages.structured_outputs import GrammarSettings, StructuredOutputs
from broker_pipeline.model_facts import read_model_facts
from stages.compute.grammar.grammars import Grammars
from stages.compute.grammar.token_bits import TokenBits
from tests.kit.models.tiny_artifacts import tiny_artifact

FACTS = read_model_facts(tiny_artifact())
VOCAB_SIZE = FACTS.vocab_size

SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "boolean"},
    {"type": "integer", "minimum": -20, "maximum": 300},
    {"enum": ["cat", "a \"dog\"", "é", 7, None]},
    {"type": "string", "maxLength": 5},
    {"type": "string", "pattern": "^[a-c]{2}-[0-9]+$", "maxLength": 8},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "$defs": {"tree": {"anyOf": [{"enum": [0, 1]}, {"$ref": "#/$defs/pair"}]}, "pair": {
            "type": "array", "prefixItems": [{"$ref": "#/$defs/tree"}, {"enum": ["x"]}], "items": False, "minItems": 2,
        }},
        "$ref": "#/$defs/pair",
    },
)  # fmt: skip


@cache
def grammars() -> Grammars:
    """Return a compiler for the tiny models' tokenizer, shared by all tests of a process."""
    return Grammars(tiny_artifact(), VOCAB_SIZE)


def grammar_settings(begins_after: int | None = None, **asked: Any) -> GrammarSettings:
    source = grammar_source(msgspec.convert(asked, StructuredOutputs))
    return GrammarSettings(source=source, begins_after=begins_after)


def ids_of(bits: TokenBits) -> set[int]:
    """Return the tokens of a set of bits."""
    return set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())
