"""The command `broker-pipeline keys`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.table import Table

from broker_pipeline.client.operator_token import REDIS_URL_FILE, state_home
from broker_pipeline.config import DEFAULT_REDIS_URL, SECRETS_OPTION, PathType, add_options, option, parse_settings
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.keys import GatewayKey, KeyLimits
from broker_pipeline.process.terminal import make_console
from broker_pipeline.security.credentials import load_credentials
from broker_pipeline.state.access.gateway_keys import ID_LENGTH, GatewayKeys
from broker_pipeline.state.redis_client import open_redis

F = TypeVar("F", bound=Callable[..., Any])
Result = TypeVar("Result")


def _shared(function: F) -> F:
    options = (
        option(
            "--redis-url",
            default=None,
            show_default=False,
            help=f"Redis of the gateway. [default: that of `up`, where it runs, else {DEFAULT_REDIS_URL}]",
        ),
        SECRETS_OPTION,
        option("--namespace", default="bp", help="Prefix of every key in Redis."),
        option(
            "--data-dir",
            default=None,
            type=PathType(path_type=Path, file_okay=False),
            show_default=False,
            help="That of `up`. [default: as `up` has it]",
        ),
        option("--json", "as_json", is_flag=True, envvar=None, show_envvar=False, help="One JSON object a line."),
    )
    return add_options(function, options)


def _limit(flag: str, text: str) -> Callable[[F], F]:
    return option(
        flag, default=None, type=click.IntRange(min=1), envvar=None, show_envvar=False, show_default=False, help=text
    )


@click.group()
def command() -> None:
    """Make, list and withdraw keys to the gateway.

    A key belongs to a tenant, whose jobs nobody else sees, and has scopes: submit (and retry and stop jobs), read
    (jobs, and the pipeline's state), operate (all that for everybody's jobs, and drain workers). Redis keeps its hash,
    so that gateways need no restart, and refuse a withdrawn key within seconds.

    \b
    Examples:
      broker-pipeline keys create alice
      broker-pipeline keys create nightly --requests-per-minute 600 --max-queued 100000
      broker-pipeline keys create research --weight 3
      broker-pipeline keys create me --scope operate --redis-url rediss://broker --secrets SECRETS
      broker-pipeline keys revoke alice
    """


@command.command("create")
@click.argument("tenant", metavar="TENANT")
@option(
    "--scope",
    "scopes",
    multiple=True,
    default=("submit", "read"),
    type=click.Choice(["submit", "read", "operate"]),
    envvar=None,
    show_envvar=False,
    help="What it allows; may be repeated.",
)
@_limit("--requests-per-minute", "Requests that submit work, each minute.")
@_limit("--tokens-per-minute", "Tokens of texts and of outputs at their longest, each minute.")
@_limit("--max-parallel", "Requests that make jobs, and lines of batches, under way at the same time.")
@_limit("--max-queued", "Jobs of its tenant that wait.")
@option(
    "--weight",
    default=1.0,
    type=click.FloatRange(0.01, 100),
    envvar=None,
    show_envvar=False,
    help="Share of its tenant's jobs beside other tenants' that wait: 3 gets three times what 1 gets.",
)
@_shared
def create(tenant: str, scopes: tuple[str, ...], weight: float, as_json: bool, **options: Any) -> None:
    """Make a key and print it: nobody sees it a second time."""
    limits = {name: options[name] for name in KeyLimits.__struct_fields__}
    named = {"tenant": tenant, "scopes": scopes, "created_at": time.time(), "limits": limits, "weight": weight}
    key = parse_settings(GatewayKey, named)
    secret = _run(options, lambda keys: keys.create(key))
    click.echo(msgspec.json.encode({"key": secret, **msgspec.to_builtins(key)}) if as_json else secret)


@command.command("list")
@_shared
def list_keys(as_json: bool, **options: Any) -> None:
    """List keys by the first digits of their hash, oldest first."""
    keys = _run(options, lambda keys: keys.list())
    if as_json:
        for name, key in keys.items():
            click.echo(msgspec.json.encode({"id": name[:ID_LENGTH], **msgspec.to_builtins(key)}))
    elif keys:
        make_console().print(_table(keys))
    else:
        click.echo("there are no keys")


@command.command("revoke")
@click.argument("chosen", metavar="KEY...", nargs=-1, required=True)
@_shared
def revoke(chosen: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Withdraw keys, by their ids as `list` shows them, or all of a tenant by its name."""
    for each in chosen:
        for name, key in _run(options, lambda keys, each=each: keys.revoke(each)).items():  # type: ignore[misc]
            shown = {"id": name[:ID_LENGTH], "tenant": key.tenant}
            click.echo(msgspec.json.encode(shown) if as_json else f"{shown['id']} of {key.tenant} is withdrawn")


def _run(options: dict[str, Any], call: Callable[[GatewayKeys], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        credentials = load_credentials(options["secrets"], "operator", options["namespace"])
        url = options["redis_url"] or _redis_of_up(options["data_dir"])
        async with open_redis(url, credentials=credentials) as redis:
            return await call(GatewayKeys(redis, options["namespace"]))

    return asyncio.run(run())


def _redis_of_up(data_dir: Path | None) -> str:
    with contextlib.suppress(FileNotFoundError, ConfigurationError):
        return ((data_dir or state_home() / "main") / REDIS_URL_FILE).read_text().strip()
    if data_dir is not None:
        reason = f"no `broker-pipeline up` with a Redis of its own runs in {data_dir}"
        raise ConfigurationError(reason, field="data_dir")
    return DEFAULT_REDIS_URL


def _table(keys: dict[str, GatewayKey]) -> Table:
    table = Table("id", "tenant", "scopes", "made", "weight", "limits", box=None, pad_edge=False)
    for name, key in keys.items():
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
        limits = {name: value for name, value in msgspec.structs.asdict(key.limits).items() if value is not None}
        shown = ", ".join(f"{name} {value}" for name, value in limits.items())
        table.add_row(name[:ID_LENGTH], key.tenant, " ".join(key.scopes), made, f"{key.weight:g}", shown or "none")
    return table
