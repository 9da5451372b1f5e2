"""The flags of `broker-pipeline caption` that say how to sample: each has the name of its field in the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import orjson

from broker_pipeline.config import add_options, option, parse_settings
from broker_pipeline.messages.sampling import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])


def _parse_json(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    try:
        return value if value is None else orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(f"{value!r} is not JSON.") from error


def _json_option(flag: str, text: str) -> Callable[[F], F]:
    return option(flag, default=None, metavar="JSON", callback=_parse_json, help=text)


_OPTIONS = (
    option("--max-tokens", default=None, type=int, help="Longest caption, in tokens."),
    option("--min-tokens", default=None, type=int, help="Shortest caption, in tokens."),
    option("--temperature", default=None, type=float, help="0 always takes the likeliest token."),
    option(
        "--top-p", default=None, type=float, help="Sample from the likeliest tokens with this probability together."
    ),
    option("--top-k", default=None, type=int, help="Sample from this many of the likeliest tokens; 0 for all."),
    option("--min-p", default=None, type=float, help="Sample from tokens this likely, measured by the likeliest."),
    option("--repetition-penalty", default=None, type=float, help="Above 1 makes repetitions unlikely."),
    option("--presence-penalty", default=None, type=float, help="Above 0 makes tokens of the caption so far unlikely."),
    option("--frequency-penalty", default=None, type=float, help="The same, for each time that they were there."),
    option("--no-repeat-ngram-size", default=None, type=int, help="No sequence of so many tokens comes twice."),
    option("--bad-words", multiple=True, metavar="TEXT", help="Word that no caption has. May be repeated."),
    _json_option("--logit-bias", """Added to logits by token id: '{"15": -100}'."""),
    option("--stop", multiple=True, metavar="TEXT", help="Text that ends a caption before it. May be repeated."),
    option("--stop-token-ids", multiple=True, type=int, help="Token that ends a caption. May be repeated."),
    _json_option(
        "--repetition-detection",
        """Ends a caption that repeats itself: '{"max_pattern_size": 64, "min_count": 4}'.""",
    ),
    _json_option("--structured-outputs", """What captions have to be: '{"choice": ["indoors", "outdoors"]}'."""),
    option("--n", default=None, type=int, help="Captions of each picture."),
    option("--seed", default=None, type=int, help="Makes sampling repeatable."),
)


def sampling_options(function: F) -> F:
    """Add the flags to a command."""
    return add_options(function, _OPTIONS)


def sampling_params(options: dict[str, Any]) -> SamplingParams:
    """Return what was given of the flags; raises `ConfigurationError` naming a wrong one."""
    given = {name: options[name] for name in SamplingParams.__struct_fields__ if name in options}
    return parse_settings(SamplingParams, {name: value for name, value in given.items() if value not in (None, ())})
