"""The model's own chat template, run in a sandbox: messages to one string, as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from broker_pipeline.errors import InvalidRequestError, ModelConfigError
from stages.prompt.json_file import read_json_object

TOKENIZER_CONFIG = "tokenizer_config.json"
# In transformers' order of precedence; chat_template.jinja stands between the last two.
_JSON_FILES = ("processor_config.json", "chat_template.json")
_PLAIN_FILE = "chat_template.jinja"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_TEMPLATE_ERRORS = (TemplateError, TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RecursionError)


class ChatTemplate:
    """A compiled template. Templates come with checkpoints, so they are untrusted code: hence the sandbox.

    `special_tokens` are what templates may call by name, such as `eos_token`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        extensions = [loopcontrols, _GenerationBlock]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelConfigError(f"the chat template cannot be compiled: {error}", field="chat_template") from error

    @classmethod
    def from_directory(cls, directory: Path) -> ChatTemplate:
        """Take the template of an artifact or checkpoint, from the file that transformers would take it from.

        Raises:
            ModelConfigError: there is none, or it cannot be compiled.
        """
        settings = read_json_object(directory / TOKENIZER_CONFIG)
        source = _find_template(directory, settings)
        if source is None:
            raise ModelConfigError(
                f"no chat template: {_PLAIN_FILE}, {', '.join(_JSON_FILES)} and {TOKENIZER_CONFIG} are absent or have "
                f"none. Copy {_PLAIN_FILE} or chat_template.json from the model that this one was made from.",
                field="chat_template",
            )
        return cls(source, _special_tokens(settings))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as the model was trained to read it; `add_vision_id` numbers its pictures.

        `tools` are the functions that the model may call, as JSON Schema describes them; `variables` are what this
        template has of its own.

        Raises:
            InvalidRequestError: the template refuses these messages.
        """
        try:
            return self._template.render(
                {"add_vision_id": add_vision_id, **(variables or {})},
                **self._special_tokens,
                messages=messages,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except _TEMPLATE_ERRORS as error:
            raise InvalidRequestError(f"the chat template refuses these messages: {error}", field="messages") from error


class _GenerationBlock(Extension):
    """`{% generation %}`, by which training code marks what the model is to learn: here only its content counts."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        """Read up to the block's end."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _find_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    for name in _JSON_FILES:
        source = _template_in(read_json_object(directory / name), name)
        if source is not None:
            return source
    if (directory / _PLAIN_FILE).is_file():
        return _text(directory / _PLAIN_FILE)
    return _template_in(tokenizer_config, TOKENIZER_CONFIG)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelConfigError(f"{path.name} is not UTF-8: {error}", field=path.name) from error


def _template_in(content: Mapping[str, Any], name: str) -> str | None:
    source = content.get("chat_template")
    if isinstance(source, list):  # several, each with a name
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
    if isinstance(source, dict):
        source = source.get("default")
    if source is not None and not isinstance(source, str):
        raise ModelConfigError(f"chat_template in {name} is not a string", field="chat_template")
    return source


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    found = {name: tokenizer_config.get(name) for name in _SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as the models were trained: without the HTML escapes of Jinja's own filter, other scripts readable."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateRuntimeError(message)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
