"""The model's own chat template, run in a sandbox: messages to one string."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from broker_pipeline.errors import InvalidRequestError, ModelConfigError

_JSON_FILES = ("chat_template.json", "tokenizer_config.json")


class ChatTemplate:
    """A compiled template. Templates come with checkpoints, so they are untrusted code: hence the sandbox."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelConfigError(f"the chat template cannot be compiled: {error}", field="chat_template") from error

    @classmethod
    def from_directory(cls, directory: Path) -> ChatTemplate:
        """Take `chat_template.jinja`, else `chat_template.json`, else the one in `tokenizer_config.json`.

        Raises:
            ModelConfigError: there is none, or it cannot be compiled.
        """
        plain = directory / "chat_template.jinja"
        if plain.is_file():
            return cls(plain.read_text(encoding="utf-8"))
        for name in _JSON_FILES:
            source = _template_in(directory / name)
            if source is not None:
                return cls(source)
        raise ModelConfigError(
            f"no chat template: {plain.name}, {' and '.join(_JSON_FILES)} are absent or have none",
            field="chat_template",
        )

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, add_vision_id: bool = False
    ) -> str:
        """Return the conversation as the model was trained to read it; `add_vision_id` numbers its pictures.

        Raises:
            InvalidRequestError: the template refuses these messages.
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, add_vision_id=add_vision_id
            )
        except (TemplateError, TypeError, AttributeError, ValueError) as error:
            raise InvalidRequestError(f"the chat template refuses these messages: {error}", field="messages") from error


def _template_in(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        source = json.loads(path.read_bytes()).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise ModelConfigError(f"{path.name} is not a JSON object: {error}", field=path.name) from error
    if source is not None and not isinstance(source, str):
        raise ModelConfigError(f"chat_template in {path.name} is not a string", field="chat_template")
    return source


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Write JSON as the models were trained: without the HTML escapes of Jinja's own filter, other scripts readable."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateRuntimeError(message)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
