"""`broker-pipeline plan`: what goes where on several hosts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from broker_pipeline import exit_codes
from broker_pipeline.config import PathType, refuse_nan
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.fleet.advice import advise
from broker_pipeline.planning.fleet.search import choose_fleet_plan
from broker_pipeline.planning.workload import Workload
from broker_pipeline.process.terminal import make_console
from trials.bench.options import kv_dtype_option
from trials.hosts.described import read_hosts
from trials.hosts.env_files import Variables, env_files, roles_of, write_env_files
from trials.hosts.named_model import read_named_model
from trials.hosts.next_steps import commands_here, commands_there
from trials.hosts.plan_view import PlanView
from trials.hosts.sizing import sizing_table


@click.command(name="plan")
@click.option(
    "--hosts", type=PathType(path_type=Path, dir_okay=False), metavar="FILE", help="Hosts, in TOML: see below."
)
@click.option("--model", metavar="MODEL", help="Artifact, or a published model: 2B, 4B, 8B, 32B, 30B-A3B, 235B-A22B.")
@click.option("--target", type=click.FloatRange(min=0, min_open=True), callback=refuse_nan, help="Captions per second.")
@click.option(
    "--env",
    "env_directory",
    type=PathType(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write DIR/HOST/*.env for compose/*.yaml; DIR must not be there yet, or be empty.",
)
@click.option("--output-tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Of a caption.")
@kv_dtype_option
@click.option("--sizing", is_flag=True, help="In place of a plan: a table of all published models on some hosts.")
def command(
    hosts: Path | None,
    model: str | None,
    target: float | None,
    env_directory: Path | None,
    output_tokens: int,
    kv_dtype: str,
    sizing: bool,
) -> None:
    """Say what goes where on several hosts, what it gives, and what limits it. Starts nothing.

    \b
    hosts.toml:
      [network]                      what joins hosts that no [[links]] names
      mbit_s = 1000
      latency_ms = 0.5
      payloads = "direct"            or "broker": a firewall is between the workers
      [[hosts]]
      name = "front"
      address = "10.0.0.1"
      roles = ["broker", "gateway"]  else the first host has them
      [[hosts]]
      name = "gpu-1"
      address = "10.0.0.2"
      probe = "gpu-1.json"           what `probe --out` wrote there; or by hand:
      [[hosts]]
      name = "gpu-2"
      address = "10.0.0.3"
      cores = 16
      port_mbit_s = 10000
      devices = [{ name = "NVIDIA L40S", memory_gb = 48 }, { name = "NVIDIA L40S", memory_gb = 48 }]
      [[links]]
      between = ["gpu-1", "gpu-2"]
      mbit_s = 10000
      latency_ms = 0.2

    Exit codes: 0 planned, 1 planned and the target is not met, 2 wrong usage, a wrong host file, or no room for the
    model.

    \b
    Examples:
      broker-pipeline plan --hosts hosts.toml --model 8B
      broker-pipeline plan --hosts hosts.toml --model ./artifacts --target 50 --env env
    """
    if sizing:
        click.echo("\n".join(sizing_table()))
        return
    if hosts is None or model is None:
        raise ConfigurationError(
            f"a plan needs --{'hosts' if hosts is None else 'model'}: see broker-pipeline plan --help"
        )
    kv_in_fp8 = kv_dtype == "fp8"
    view = planned(hosts, model, Workload(num_output_tokens=output_tokens), kv_in_fp8=kv_in_fp8)
    files = env_files(view.described, view.found, kv_in_fp8=kv_in_fp8)
    if env_directory is not None:
        write_env_files(env_directory, files)
    console = make_console()
    view.print(console)
    met = _say_target(view, target)
    if env_directory is not None:
        _say_next(view, files, env_directory, model)
    sys.exit(exit_codes.OK if met else exit_codes.SOME_FAILED)


def planned(hosts: Path, model: str, workload: Workload, *, kv_in_fp8: bool = False) -> PlanView:
    """Plan for a host file; raises `ConfigurationError` and `ArtifactError`."""
    sizes, described = read_named_model(model, kv_in_fp8=kv_in_fp8), read_hosts(hosts)
    return PlanView(sizes, described, choose_fleet_plan(sizes, described.fleet, workload), workload)


def _say_target(view: PlanView, target: float | None) -> bool:
    """Say whether the target is met, and if not what would do; return whether it is, or none was asked for."""
    rate = view.found.plan.forecast.captions_per_s
    if target is None or rate >= target:
        if target is not None:
            click.echo(f"the target of {target:g} captions/s is met")
        return True
    click.echo("looking for what would meet the target", err=True)
    advice = advise(view.model, view.found, view.workload, target)
    click.echo(f"the target of {target:g} captions/s is not met, {target - rate:.3g} are missing: {advice}")
    return False


def _say_next(view: PlanView, files: Mapping[str, Variables], directory: Path, model: str) -> None:
    artifact = model if Path(model).is_dir() else "ARTIFACT"
    click.echo(f"wrote {directory}/HOST/*.env; what comes next is in docs/operations.md, Several hosts. Here:")
    for command in commands_here(roles_of(view.described, view.found), files, artifact):
        click.echo(f"  {command}")
    click.echo("and on the hosts, in this order, once they have their files:")
    for host, command in commands_there(files):
        click.echo(f"  {host}$ {command}")
