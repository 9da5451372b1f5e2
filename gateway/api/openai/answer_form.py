"""What an answer has to be, however OpenAI's clients ask for it, as one grammar. Pure.

response_format, text.format     JSON, or JSON of a schema
structured_outputs               as jobs have it
tool_choice                      a call of one tool, or of any of them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.grammars.rule import check_structured_outputs, with_bounded_spaces
from broker_pipeline.messages.structured_outputs import StructuredOutputs
from gateway.api.openai.tool_calls import BEGIN, END
from gateway.api.openai.tools import Function

Choice: TypeAlias = tuple[str | None, tuple[Function, ...]]
"""What is to be called, as `call_form` has it, and the functions that the model is told of."""

_ONE_CALL, _SOME_CALLS = "start: call", 'start: call ("\\n" call)*'


def schema_form(kind: str, schema: dict[str, Any] | None, field: str) -> StructuredOutputs | None:
    """Return the form of a format called `kind`; `field` is where its schema stands."""
    if kind == "text":
        return None
    if kind == "json_schema" and schema is None:
        raise InvalidRequestError("there is no schema", field=field)
    return StructuredOutputs(json=True if kind == "json_object" or schema is None else schema)


def call_form(choice: str | None, functions: Sequence[Function]) -> StructuredOutputs | None:
    """Return the form of an answer that calls: the function of this name, or where it is `required` any of them."""
    if choice in (None, "none", "auto"):
        return None
    wanted = [function for function in functions if choice in ("required", function.name)]
    if not wanted:
        said = (
            f"there is no tool {choice} among `tools`" if functions else "this needs `tools`, of which there are none"
        )
        raise InvalidRequestError(said, field="tool_choice")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": each.name}, "arguments": each.parameters or {"type": "object"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for each in wanted
    ]
    schema = with_bounded_spaces(calls[0] if len(calls) == 1 else {"anyOf": calls})
    start = _SOME_CALLS if choice == "required" else _ONE_CALL
    return StructuredOutputs(
        # The tags stand for their tokens, which is what models of this family say.
        grammar=f'{start}\ncall: {BEGIN} "\\n" json "\\n" {END}\njson: %json {msgspec.json.encode(schema).decode()}\n'
    )


def only_form(**forms: StructuredOutputs | None) -> StructuredOutputs | None:
    """Return the one form that is asked for, checked; the names say where. Takes up to tens of milliseconds.

    Raises `InvalidRequestError` for several, and for what the grammar library refuses.
    """
    given = [(name.replace("__", "."), form) for name, form in forms.items() if form is not None]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidRequestError(f"not with `{given[0][0]}`", field=given[1][0])
    [(field, form)] = given
    try:
        check_structured_outputs(form)
    except InvalidRequestError as error:
        if field == "tool_choice":  # of that grammar only the tools' schemas are the client's
            raise InvalidRequestError(error.message.partition("\n")[0], field="tools") from error
        raise InvalidRequestError(error.message, field=field) from error
    return form
