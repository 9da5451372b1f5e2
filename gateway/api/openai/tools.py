"""Functions that the model may call, and its calls in earlier turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.template_options import ToolCall
from gateway.api.openai.content_parts import Lenient
from gateway.intake.validation import decode_json
from gateway.schemas import Text

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Lenient, frozen=True, kw_only=True):
    """A function; `parameters` are a JSON schema."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None


class Tool(Lenient, frozen=True, kw_only=True):
    """A function among the tools; there are no other ones here."""

    type: Literal["function"] = "function"
    function: Function


class CalledFunction(Lenient, frozen=True, kw_only=True):
    """Which function was called, with what: `arguments` are JSON in a string."""

    name: FunctionName
    arguments: Text = "{}"


class CalledTool(Lenient, frozen=True, kw_only=True):
    """A call in an earlier turn."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


def allowed(functions: Sequence[Function], names: Sequence[str], path: str) -> tuple[Function, ...]:
    """Return the functions of these names; raises `InvalidRequestError` for one that is none, below `path`."""
    known = {function.name for function in functions}
    for index, name in enumerate(names):
        if name not in known:
            raise InvalidRequestError(f"there is no tool {name} among `tools`", field=f"{path}[{index}]")
    return tuple(function for function in functions if function.name in names)


def shown_to_template(function: Function) -> dict[str, Any]:
    """Return a function as the chat templates of this family were trained on."""
    fields = {name: getattr(function, name) for name in ("name", "description", "parameters")}
    return {"type": "function", "function": {name: value for name, value in fields.items() if value is not None}}


def earlier_call(called: CalledFunction, path: str) -> ToolCall:
    """Return a call as jobs have it; raises `InvalidRequestError` for arguments that are no JSON object."""
    arguments = decode_json(called.arguments.encode() or b"{}", dict[str, Any], prefix=f"{path}.arguments")
    return ToolCall(name=called.name, arguments=arguments)


def check_names(functions: tuple[Function, ...], path: str) -> None:
    """Refuse two functions of one name: nobody could tell which one was called."""
    seen: set[str] = set()
    for index, function in enumerate(functions):
        if function.name in seen:
            raise InvalidRequestError(f"there are two tools called {function.name}", field=f"{path}[{index}]")
        seen.add(function.name)
