"""What a compose file says with an env file, as `docker compose config` resolves it: only what files in compose/ use.

file ── ${NAME}, ${NAME:-default}, ${NAME:?sentence} ──► YAML ── extends ──► Project
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).resolve().parents[3] / "compose"
ROLES = sorted(COMPOSE.glob("*.yaml"))
_REPLACED = {"command", "entrypoint", "test"}
"""Lists that another one replaces; others it is added to."""
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")


class VariableMissingError(Exception):
    """A variable without which nothing starts; says so in the file's own words."""


@dataclass(frozen=True)
class Project:
    """A compose project, resolved."""

    name: str
    services: dict[str, dict[str, Any]]
    volumes: dict[str, Any]


def load_project(path: Path, env: Mapping[str, str]) -> Project:
    """Resolve a file."""
    document = _read(path, env)
    services = {name: _extended(path, document, name, env) for name in document.get("services", {})}
    return Project(document.get("name", ""), services, document.get("volumes", {}))


def variables_of(path: Path) -> dict[str, bool]:
    """Return the variables that a file reads, with the files that it takes in, and whether each is needed."""
    text = path.read_text()
    found = {match["name"]: False for match in _VARIABLE.finditer(text)}
    found |= {match["name"]: True for match in _VARIABLE.finditer(text) if match["kind"] == "?"}
    found |= dict.fromkeys(re.findall(r"^ +(BROKER_PIPELINE_\w+):$", text, re.MULTILINE), False)
    for other in re.findall(r"file: ([\w/.-]+\.yaml)", text):
        for name, is_needed in variables_of(path.parent / other).items():
            found[name] = found.get(name, False) or is_needed
    return found


def read_env_file(path: Path) -> dict[str, str]:
    """Return what an env file says."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def _read(path: Path, env: Mapping[str, str]) -> dict[str, Any]:
    return _resolved(yaml.safe_load(path.read_text()), env)


def _resolved(value: Any, env: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _value(match, env), value)
    if isinstance(value, list):
        return [_resolved(each, env) for each in value]
    if not isinstance(value, dict):
        return value
    resolved = {key: _resolved(each, env) for key, each in value.items()}
    if "environment" in resolved:  # what has no value is passed on
        named = {key: env.get(key) if each is None else each for key, each in resolved["environment"].items()}
        resolved["environment"] = {key: each for key, each in named.items() if each}
    return resolved


def _value(match: re.Match[str], env: Mapping[str, str]) -> str:
    if given := env.get(match["name"]):
        return given
    if match["kind"] == "?":
        raise VariableMissingError(match["text"])
    return match["text"] or ""


def _extended(path: Path, document: dict[str, Any], name: str, env: Mapping[str, str]) -> dict[str, Any]:
    service = dict(document["services"][name])
    base = service.pop("extends", None)
    if base is None:
        return service
    other = path.parent / base["file"] if "file" in base else path
    origin = _read(other, env) if "file" in base else document
    return _merged(_extended(other, origin, base["service"], env), service)


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], value)
        elif isinstance(value, list) and key in base and key not in _REPLACED:
            merged[key] = base[key] + value
        else:
            merged[key] = value
    return merged
