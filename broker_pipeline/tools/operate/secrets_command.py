"""The command `broker-pipeline secrets`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.table import Table

from broker_pipeline.config import PathType, parse_settings
from broker_pipeline.security.roles import ROLES, Role
from broker_pipeline.security.secrets_directory import SERVERS_AT, DirectoryFacts, SecretsDirectory
from broker_pipeline.tools.terminal import make_console

_DIRECTORY = click.argument("directory", metavar="DIR", type=PathType(path_type=Path, file_okay=False))
_ROLE = click.Choice(ROLES)
_TELL_SERVERS = (
    "servers: copy {path}/servers to the host of NATS and Redis, then `nats-server --signal reload` and `ACL LOAD`"
)


@click.group()
def command() -> None:
    """Make what parts of a pipeline show each other, so that nobody else on the network can do anything.

    \b
    On the operator's machine:
      broker-pipeline secrets init secrets
      broker-pipeline secrets add-host secrets hub --role gateway --role conductor --role operator
      broker-pipeline secrets add-host secrets gpu-1 --role stage --role vision
    Then DIR/servers belongs to the host of NATS and Redis, and DIR/hosts/HOST to each other one, where every service
    and command takes it:
      gpu-1$ broker-pipeline stage --secrets /etc/broker-pipeline --model ARTIFACTS --blocks 0:12

    What stays, DIR/authority, is for nobody else: whoever has it can make more. Where there are secrets, names of a
    host's workers begin with the host's: stage-0 on gpu-1 is gpu-1_stage-0.
    """


@command.command("init")
@_DIRECTORY
@click.option("--namespace", default="bp", show_default=True, help="That of the services.")
@click.option(
    "--servers-at", default=SERVERS_AT, show_default=True, help="Where the servers' host will have DIR/servers."
)
def init(directory: Path, namespace: str, servers_at: str) -> None:
    """Make the directory, without any host yet; one that is there is left as it is."""
    facts = parse_settings(DirectoryFacts, {"namespace": namespace, "servers_at": servers_at})
    SecretsDirectory.create(directory, facts)
    click.echo(
        f"{directory} holds secrets for namespace {namespace}; add hosts with `broker-pipeline secrets add-host`"
    )


@command.command("add-host")
@_DIRECTORY
@click.argument("host", metavar="HOST")
@click.option("--role", "roles", multiple=True, required=True, type=_ROLE, help="What runs there; may be repeated.")
def add_host(directory: Path, host: str, roles: tuple[Role, ...]) -> None:
    """Make secrets for a host, or for more roles of one that is there; those that it has stay as they are."""
    made = SecretsDirectory(directory)
    new = made.add_host(host, roles)
    if not new:
        click.echo(f"{host} has all that already: nothing was changed")
        return
    click.echo(f"{host}: copy {made.host_folder(host)} there, for {', '.join(new)}")
    click.echo(_TELL_SERVERS.format(path=directory))


@command.command("rotate")
@_DIRECTORY
@click.argument("host", metavar="[HOST]", required=False)
@click.option("--role", "roles", multiple=True, type=_ROLE, help="Only this role's; may be repeated.")
def rotate(directory: Path, host: str | None, roles: tuple[Role, ...]) -> None:
    """Make new secrets for a host; without HOST, for all of them, and a new key to the gateway.

    Until its new folder is there and its services are started again, a host is shut out as soon as the servers know.
    """
    made = SecretsDirectory(directory)
    hosts = [host] if host else [name for name, had in made.hosts.items() if not roles or set(roles) & set(had)]
    for name in hosts:
        had = made.hosts.get(name, ())
        new = made.rotate(name, roles if host else [role for role in roles if role in had])
        click.echo(f"{name}: copy {made.host_folder(name)} there, and start {', '.join(new)} again")
    if not host and not roles:
        holders = made.rotate_gateway_key()
        click.echo(f"key to the gateway: new on {', '.join(holders) or 'no host'}")
    click.echo(_TELL_SERVERS.format(path=directory))


@command.command("show")
@_DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(directory: Path, as_json: bool) -> None:
    """List hosts and their roles; no secret is shown."""
    made = SecretsDirectory(directory)
    if as_json:
        shown = {**msgspec.to_builtins(made.facts), "hosts": made.hosts}
        click.echo(msgspec.json.encode(shown))
        return
    click.echo(f"namespace {made.facts.namespace}; the servers have their files at {made.facts.servers_at}")
    table = Table("host", "roles", box=None, pad_edge=False)
    for host, roles in made.hosts.items():
        table.add_row(host, ", ".join(roles))
    if made.hosts:
        make_console().print(table)
