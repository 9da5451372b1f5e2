"""What is asked of an answer becomes a grammar that llguidance reads; without a tokenizer, and so without a model.

json     {"type": "object", …} ─┐
regex    [a-z]+ ────────────────┼─► grammar source ─► validated here, compiled for a tokenizer at the last stage
choice   "cat", "dog" ──────────┤
grammar  start: "cat" | "dog" ──┘
"""

from __future__ import annotations

from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.structured_outputs import MAX_GRAMMAR_CHARS, StructuredOutputs

_MAX_SAID_CHARS = 300
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_SPACES = {"whitespace_pattern": "[ \\n\\r\\t]{0,20}"}


def parser_limits() -> LLParserLimits:
    """Return how much work one grammar may be: compiled within tens of milliseconds, a mask within a few.

    Errors do not repeat the grammar or the text so far.
    """
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def grammar_source(asked: StructuredOutputs) -> str:
    """Return the grammar as llguidance reads it; whether it accepts that, `check_structured_outputs` says."""
    if asked.regex is not None:
        return str(LLMatcher.grammar_from_regex(asked.regex))
    if asked.json is not None:
        return _grammar("json_schema", with_bounded_spaces(asked.json if isinstance(asked.json, dict) else _ANY_OBJECT))
    if asked.choice is not None:
        return _grammar("lark_grammar", "start: CHOICE\nCHOICE: " + " | ".join(_quoted(text) for text in asked.choice))
    assert asked.grammar is not None, "exactly one is given"
    return _grammar("lark_grammar", asked.grammar)


def with_bounded_spaces(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with at most 20 characters of white space in each place, unless it says how many itself.

    JSON allows any number, and some models go on with them until their output is full.
    """
    return {"x-guidance": _SPACES} | schema


def check_structured_outputs(asked: StructuredOutputs, where: str = "sampling.structured_outputs") -> None:
    """Refuse what the grammar library does, or what is too large; takes up to tens of milliseconds, most without GIL.

    `where` begins the field's name.

    Raises:
        InvalidRequestError: the schema, expression or grammar is wrong, or needs what the library cannot do.
    """
    field = next(f"{where}.{name}" for name in asked.__struct_fields__ if getattr(asked, name) is not None)
    num_bytes = len(msgspec.json.encode(asked))
    if num_bytes > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(f"{num_bytes} bytes; up to {MAX_GRAMMAR_CHARS} are possible", field=field)
    is_wrong, said = LLMatcher.validate_grammar_with_warnings(grammar_source(asked), limits=parser_limits())
    if is_wrong:
        raise InvalidRequestError(_shortened(said[0]), field=field)


def _grammar(kind: str, content: str | dict[str, Any]) -> str:
    """Say what kind of grammar it is: a bare text that begins with a brace would not be taken for Lark's notation."""
    return msgspec.json.encode({"grammars": [{kind: content}]}).decode()


def _quoted(text: str) -> str:
    """Write a text as a string of Lark's: JSON's escapes are among its own."""
    return msgspec.json.encode(text).decode()


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SAID_CHARS else f"{text[:_MAX_SAID_CHARS]} …"
