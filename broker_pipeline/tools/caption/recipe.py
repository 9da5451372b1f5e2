"""A recipe: a TOML file that says what a run of `caption` is told, by the names of its flags.

    paths = ["photos/"]
    out = "captions.jsonl"
    preset = "detailed"
    to = ["metadata.jsonl"]
    max_tokens = 200

A flag on the command line, or its variable, comes before the recipe. What a run was told in the end is written beside
its log as another recipe, so that anybody can do the same again.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from broker_pipeline.captioning.sinks.new_file import write_whole
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.terminal import printable

_NOT_IN_RECIPES = frozenset({"recipe", "key", "secrets", "help"})
"""Secrets have no place in a file that is handed on."""


def load_recipe(context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """Take a recipe's values for defaults of the command; raises `ConfigurationError` for what no flag is called."""
    if path is None:
        return None
    given = _read(path)
    known = {str(each.name) for each in context.command.params} - _NOT_IN_RECIPES
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"--recipe {printable(path)}: there is no `{name}`; it takes {', '.join(sorted(known))}", field="recipe"
            )
    context.default_map = {**(context.default_map or {}), **given}
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--recipe {printable(path)}: {error.strerror}", field="recipe") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--recipe {printable(path)} is not TOML: {error}", field="recipe") from error


def recipe_of(out: Path) -> Path:
    """Return where the recipe of a log stands."""
    return out.with_name(f"{out.name}.recipe.toml")


def write_recipe(path: Path, options: Mapping[str, Any]) -> None:
    """Write what a run was told, whole or not at all; raises `OutputError`."""
    told = {name: value for name, value in options.items() if name not in _NOT_IN_RECIPES and value not in (None, ())}
    write_whole(path, "".join(_entry(name, value) for name, value in sorted(told.items())).encode(), field="out")


def _entry(name: str, value: Any) -> str:
    text = _toml(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"# {name}: has names that are no UTF-8, which TOML cannot have\n"
    return f"{name} = {text}\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, _items(value)))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(name)} = {_toml(each)}' for name, each in value.items())}}}"
    return _text(value)


def _items(values: Iterable[Any]) -> Iterable[Any]:
    return (value for value in values if value is not None)


def _text(value: object) -> str:
    """Return a basic string: JSON's escapes are TOML's, but for DEL, and for halves of pairs."""
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
