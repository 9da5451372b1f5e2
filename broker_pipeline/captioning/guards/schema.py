"""JSON in captions, and the schemas that it follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

from broker_pipeline.captioning.guards.cleaning import unfenced
from broker_pipeline.errors import ConfigurationError

Check = Callable[[Any], str | None]
_MAX_MESSAGE = 200


def why_not_json(text: str, schema: str | None) -> str | None:
    """Return why a text, within a code fence or not, is no JSON that follows the schema; None where it is."""
    try:
        value = json.loads(unfenced(text), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    return None if schema is None else check_by(schema)(value)


@lru_cache(maxsize=16)
def check_by(schema: str) -> Check:
    """Return what says how a value breaks a JSON Schema; raises `ConfigurationError` where the schema is none."""
    try:
        import jsonschema  # noqa: PLC0415 - only who has a schema needs it
        from referencing import Registry  # noqa: PLC0415
        from referencing.exceptions import Unresolvable  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "checking captions by a JSON schema needs jsonschema: pip install jsonschema", field="json_schema"
        ) from error
    try:
        parsed = json.loads(schema)
        kind = jsonschema.validators.validator_for(parsed, default=jsonschema.Draft202012Validator)
        kind.check_schema(parsed)
    except (ValueError, RecursionError, jsonschema.SchemaError) as error:
        reason = getattr(error, "message", str(error))
        raise ConfigurationError(f"the JSON schema is none: {reason}", field="json_schema") from error
    validator = kind(parsed, registry=Registry())  # which fetches nothing

    def check(value: Any) -> str | None:
        try:
            worst = jsonschema.exceptions.best_match(validator.iter_errors(value))
        except Unresolvable as error:
            raise ConfigurationError(f"the JSON schema leads elsewhere: {error}", field="json_schema") from error
        return None if worst is None else f"{worst.json_path}: {worst.message}"[:_MAX_MESSAGE]

    return check


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no value")
