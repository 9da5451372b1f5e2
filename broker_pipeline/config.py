"""Settings, parsed once at the edge: flags first, then environment variables, then defaults.

Every option made with `option` reads `BROKER_PIPELINE_<NAME>` as well, and says so in `--help`. A variable with that
prefix which no command knows is refused, since it is most likely a misspelling. Of an option that may be repeated, the
variable is one value as it stands, or several as a JSON array. Whatever is wrong with a value, the message begins with
its flag.
"""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import click
import msgspec
from click.core import ParameterSource
from msgspec import Meta

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.logs import LogFormat
from broker_pipeline.messages.base import Name
from broker_pipeline.messages.wrong_value import WrongValue

ENV_PREFIX = "BROKER_PIPELINE_"
DEFAULT_NATS_URL = "nats://127.0.0.1:4222"
DEFAULT_MAX_EVENTS = 1_000_000
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound=msgspec.Struct)


class CommonSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every service needs to know."""

    nats_url: str = DEFAULT_NATS_URL
    nats_replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Servers of a NATS cluster that keep each stream."""
    redis_url: str = DEFAULT_REDIS_URL
    secrets: str | None = None
    """Folder of this host's secrets; None where the servers let everybody in."""
    namespace: Name = "bp"
    pipeline: Name = "main"
    drain_s: Annotated[float, Meta(ge=0)] = 30.0
    ready_file: str | None = None
    log_format: LogFormat = "auto"
    log_level: str = "info"
    profile: str | None = None
    """Directory for a trace of this process; None records nothing."""
    profile_max_events: Annotated[int, Meta(ge=1)] = DEFAULT_MAX_EVENTS
    otlp_endpoint: str = ""
    """URL of an OpenTelemetry collector that is sent a trace of every job; empty sends none."""
    media_roots: tuple[str, ...] = ()
    """Folders, here and behind URLs, that vision workers read media below."""


def env_name(flag: str) -> str:
    """Return the environment variable of a flag: `--nats-url` is `BROKER_PIPELINE_NATS_URL`."""
    return ENV_PREFIX + flag.split("/", maxsplit=1)[0].strip().lstrip("-").replace("-", "_").upper()


def flag_of(path: str) -> str:
    """Return the flag of a setting by its path in a struct: of `top_k` or `stop[1]` they are `--top-k` and `--stop`."""
    return "--" + path.replace("[", ".").split(".", maxsplit=1)[0].replace("_", "-")


def option(*flags: str, **attributes: Any) -> Callable[[F], F]:
    """Declare a click option that can also come from the environment and shows its default."""
    long_flag = next(flag for flag in flags if flag.startswith("--"))
    attributes.setdefault("envvar", env_name(long_flag))
    attributes.setdefault("show_envvar", True)
    attributes.setdefault("show_default", True)
    attributes.setdefault("callback", refuse_nan)
    return click.option(*flags, cls=_Option, **attributes)


class PathType(click.Path):
    """A path. An empty one is refused: it would be the working directory, and is most likely a variable without value.

    Options and arguments of every command take this instead of click's own.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; a usage error that names the option where it is empty, or not what it must be."""
        if not os.fspath(value):
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


class _Option(click.Option):
    """An option whose variable is never cut at spaces, as click does with those that may be repeated."""

    def value_from_envvar(self, ctx: click.Context) -> Any:
        text = self.resolve_envvar_value(ctx)
        if not self.multiple or text is None:
            return super().value_from_envvar(ctx)
        return _listed(text, ctx, self) if text.lstrip().startswith("[") else (text,)


def _listed(text: str, ctx: click.Context, option: click.Option) -> tuple[str, ...]:
    """Return the values of a JSON array of texts and numbers."""
    try:
        return tuple(map(str, msgspec.json.decode(text, type=tuple[str | int | float, ...])))
    except msgspec.DecodeError as error:
        reason = f"{text!r} begins like a list and is no JSON array of values; one value with [ is written '[\"[…\"]'."
        raise click.BadParameter(reason, ctx, option) from error


def refuse_nan(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """Refuse the one number that no range keeps out."""
    if value != value:  # noqa: PLR0124
        raise click.BadParameter("nan is not a number.")
    return value


SECRETS_OPTION = option(
    "--secrets",
    default=None,
    type=PathType(file_okay=False),
    metavar="DIR",
    help="Folder of this host's secrets, as `broker-pipeline secrets` made it.  [default: none, for servers without]",
)

MEDIA_ROOTS_OPTION = option(
    "--media-roots",
    multiple=True,
    metavar="DIR|URL",
    help="Folder that vision workers read pictures below where a request names them by URL and sha256 (docs/api.md): "
    "the same for gateways and vision workers. May be repeated.",
)

_COMMON_OPTIONS = (
    option("--nats-url", default=DEFAULT_NATS_URL, help="NATS server with JetStream; several, separated by commas."),
    option(
        "--nats-replicas",
        default=1,
        type=click.IntRange(1, 5),
        help="Servers of a NATS cluster that keep each stream; 3 of them outlive the loss of one.",
    ),
    option(
        "--redis-url",
        default=DEFAULT_REDIS_URL,
        help="Redis 6.2 or newer, or Valkey; behind Sentinel redis+sentinel://HOST:26379,HOST:26379,…/SERVICE.",
    ),
    SECRETS_OPTION,
    option("--namespace", default="bp", help="Prefix of every subject, stream and key, to share servers with others."),
    option("--pipeline", default="main", help="Name of the pipeline that this process belongs to."),
    option("--drain-s", default=30.0, type=click.FloatRange(min=0), help="Seconds from SIGTERM to a forced stop."),
    option("--ready-file", default=None, type=PathType(dir_okay=False), help="File written once ready, for scripts."),
    option("--log-format", default="auto", type=click.Choice(["auto", "json", "console"]), help="Form of the log."),
    option(
        "--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level."
    ),
    option(
        "--profile",
        default=None,
        type=PathType(file_okay=False),
        help="Directory to write a trace of this process into; see `broker-pipeline trace --help`.",
    ),
    option(
        "--profile-max-events",
        default=DEFAULT_MAX_EVENTS,
        type=click.IntRange(min=1),
        help="Events after which a trace ends.",
    ),
    option(
        "--otlp-endpoint",
        default="",
        help="OpenTelemetry collector (http://HOST:4318) that is sent a trace of every job; needs the extra otel.",
    ),
    MEDIA_ROOTS_OPTION,
)


def add_options(function: F, options: Sequence[Callable[[F], F]]) -> F:
    """Add options to a command, so that its help shows them in this order."""
    for decorate in reversed(options):
        function = decorate(function)
    return function


def common_options(function: F) -> F:
    """Add the options of `CommonSettings` to a command."""
    return add_options(function, _COMMON_OPTIONS)


def given_flags(context: click.Context) -> list[str]:
    """Return the flags of a command's command line, for another process of it, which inherits the environment."""
    flags = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            values = context.params[name] if parameter.multiple else (context.params[name],)
            flag = max(parameter.opts, key=len)
            is_flag = isinstance(parameter, click.Option) and parameter.is_flag  # a number that is 1 equals True
            flags += [flag] if is_flag else [f"{flag}={value}" for value in values]
    return flags


def refuse_unread(*names: str, why: str) -> None:
    """Raise `ConfigurationError` for options of the command line that are other than by default and nobody would read.

    `why` goes on from the flag: "is for …", "has no effect with …". Variables are for all commands.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if name in names and is_given and context.params[name] != parameter.get_default(context):
            raise ConfigurationError(f"{max(parameter.opts, key=len)} {why}, or leave it out", field=name)


def split_common(options: dict[str, Any]) -> tuple[CommonSettings, dict[str, Any]]:
    """Divide a command's options into the common settings and the rest."""
    common = {field: options[field] for field in CommonSettings.__struct_fields__}
    rest = {key: value for key, value in options.items() if key not in common}
    return parse_settings(CommonSettings, common), rest


def parse_settings(settings_type: type[T], options: Mapping[str, Any]) -> T:
    """Check options against a settings struct; a wrong one is a `ConfigurationError` that names its flag."""
    try:
        return msgspec.convert(dict(options), settings_type, str_keys=True)
    except msgspec.ValidationError as error:
        wrong = WrongValue.of(error)
        reason = wrong.reason
        for name in msgspec.structs.fields(settings_type):
            reason = reason.replace(f"`{name.name}`", flag_of(name.name))
        raise ConfigurationError(f"{flag_of(wrong.path)}: {reason}", field=wrong.path) from error


def check_environment(known: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Refuse `BROKER_PIPELINE_*` variables that no command knows."""
    names = set(known)
    for name in sorted(environment):
        if not name.startswith(ENV_PREFIX) or name in names:
            continue
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; `broker-pipeline COMMAND --help` lists what is read"
        raise ConfigurationError(f"unknown environment variable {name}{hint}", field=name)
