"""The command `broker-pipeline secrets`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.table import Table

from broker_pipeline.config import PathType, parse_settings
from broker_pipeline.errors import SecretsError
from broker_pipeline.process.terminal import make_console
from broker_pipeline.security.certificate_ends import SERVERS
from broker_pipeline.security.loopback import is_loopback
from broker_pipeline.security.roles import ROLES, Role
from broker_pipeline.security.secrets_directory import SERVERS_AT, DirectoryFacts, SecretsDirectory
from broker_pipeline.security.tls_contexts import utc_now

F = TypeVar("F", bound=Callable[..., Any])

_DIRECTORY = click.argument("directory", metavar="DIR", type=PathType(path_type=Path, file_okay=False))
_ROLE = click.Choice(ROLES)
_RELOAD_CERTIFICATES = "`nats-server --signal reload` and `CONFIG SET tls-cert-file … tls-key-file …`"
_TELL_SERVERS = (
    "servers: copy {path}/servers to the host of NATS and Redis, then `nats-server --signal reload` and `ACL LOAD`"
)


def _address(whose: str) -> Callable[[F], F]:
    return click.option("--address", "addresses", multiple=True, help=f"Name or IP address {whose}; may be repeated.")


@click.group()
def command() -> None:
    """Make what parts of a pipeline show each other, so that nobody else on the network can do anything.

    \b
    On the operator's machine:
      broker-pipeline secrets init secrets --address 10.0.0.1
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
@_address("of the host of NATS and Redis, as --nats-url and --redis-url name it")
def init(directory: Path, namespace: str, servers_at: str, addresses: tuple[str, ...]) -> None:
    """Make the directory, without any host yet; one that is there is left as it is.

    --address given again makes another certificate for the servers.
    """
    facts = parse_settings(DirectoryFacts, {"namespace": namespace, "servers_at": servers_at})
    SecretsDirectory.create(directory, facts, addresses)
    click.echo(
        f"{directory} holds secrets for namespace {namespace}; add hosts with `broker-pipeline secrets add-host`"
    )


@command.command("add-host")
@_DIRECTORY
@click.argument("host", metavar="HOST")
@click.option("--role", "roles", multiple=True, required=True, type=_ROLE, help="What runs there; may be repeated.")
@_address("at which others reach the host")
def add_host(directory: Path, host: str, roles: tuple[Role, ...], addresses: tuple[str, ...]) -> None:
    """Make secrets for a host, or for more roles of one that is there; those that it has stay as they are."""
    made = SecretsDirectory(directory)
    new = made.add_host(host, roles, addresses)
    if not new and not addresses:
        click.echo(f"{host} has all that already: nothing was changed")
        return
    click.echo(f"{host}: copy {made.host_folder(host)} there, for {', '.join(new or roles)}")
    click.echo(_TELL_SERVERS.format(path=directory))


@command.command("rotate")
@_DIRECTORY
@click.argument("host", metavar="[HOST]", required=False)
@click.option("--role", "roles", multiple=True, type=_ROLE, help="Only this role's; may be repeated.")
@click.option("--certificate", "only_certificates", is_flag=True, help="Only certificates: nobody is shut out.")
def rotate(directory: Path, host: str | None, roles: tuple[Role, ...], *, only_certificates: bool) -> None:
    """Make new secrets for a host; without HOST, for all of them, the servers' certificate and the gateway's key.

    Until its new folder is there and its services are started again, a host is shut out as soon as the servers know.
    With --certificate nobody is: services take new files within seconds, and old certificates are good until their end.
    """
    made = SecretsDirectory(directory)
    if only_certificates:
        _renew(made, host)
        return
    hosts = [host] if host else [name for name, had in made.hosts.items() if not roles or set(roles) & set(had)]
    for name in hosts:
        had = made.hosts.get(name, ())
        new = made.rotate(name, roles if host else [role for role in roles if role in had])
        click.echo(f"{name}: copy {made.host_folder(name)} there, and start {', '.join(new)} again")
    if not host and not roles:
        holders = made.rotate_gateway_key()
        click.echo(f"key to the gateway: new on {', '.join(holders) or 'no host'}")
        made.certificates.renew(SERVERS)
    click.echo(_TELL_SERVERS.format(path=directory))


def _renew(made: SecretsDirectory, host: str | None) -> None:
    renewed = made.certificates.renew(host)
    if not renewed:
        raise SecretsError(f"{host} has no secrets: `broker-pipeline secrets add-host` makes them", field="HOST")
    for name in renewed:
        if name == SERVERS:
            click.echo(f"servers: copy {made.path / SERVERS} there, then {_RELOAD_CERTIFICATES}")
        else:
            click.echo(f"{name}: copy {made.host_folder(name)} there; its services take it within seconds")


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
    table = Table("host", "roles", "certificate until", "for", box=None, pad_edge=False)
    certificates, hosts = made.certificates.read_all(), made.hosts
    for each in certificates:
        names = ", ".join(name for name in each.names if not is_loopback(name))
        table.add_row(each.host, ", ".join(hosts.get(each.host, ())), f"{each.ends_at:%Y-%m-%d}", names)
    make_console().print(table)
    for warning in filter(None, (each.warning(utc_now()) for each in certificates)):
        click.echo(warning)
