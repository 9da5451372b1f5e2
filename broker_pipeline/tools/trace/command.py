"""The command `broker-pipeline trace`: what becomes of the traces that `--profile` writes."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from broker_pipeline.config import PathType, refuse_nan
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.terminal import make_console
from broker_pipeline.tools.trace.merge import write_merged
from broker_pipeline.tools.trace.profile import Profile, Window, load_profile
from broker_pipeline.tools.trace.summary import summarise
from broker_pipeline.tools.trace.summary_view import render_summary

_DIRECTORY = click.argument("directory", type=PathType(path_type=Path, exists=True, file_okay=False))
_START = click.option(
    "--start-s",
    default=0.0,
    type=click.FloatRange(min=0),
    callback=refuse_nan,
    help="Seconds to leave out at the beginning.",
)
_LENGTH = click.option(
    "--for-s",
    default=None,
    type=click.FloatRange(min=0, min_open=True),
    callback=refuse_nan,
    help="Seconds to keep.  [default: all]",
)


@click.group()
def command() -> None:
    """Look at profiles: where the time of each microbatch went, across processes.

    \b
    1. Record: give --profile DIR to every service, or to `up`.
         broker-pipeline up --model ARTIFACTS --stages 3 --profile prof
    2. Join the traces of all processes, which may come from several hosts:
         broker-pipeline trace merge prof -o trace.json      open it in https://ui.perfetto.dev or chrome://tracing
         broker-pipeline trace summary prof                  busy and bubble shares, wire, queue, compute, host work
    """


@command.command("merge")
@_DIRECTORY
@click.option("-o", "--out", required=True, type=PathType(path_type=Path, dir_okay=False), help="File to write.")
@_START
@_LENGTH
def merge(directory: Path, out: Path, start_s: float, for_s: float | None) -> None:
    """Join the traces in DIRECTORY into one Chrome trace on one time axis.

    Arrows lead from each stage to the next; `wire` is the time that a message took from the one process to the other.
    Hosts are put onto one axis by their wall clocks, and by the times of messages where these went both ways.
    """
    profile = _load(directory, start_s, for_s)
    if out.resolve().parent == directory.resolve():
        raise ConfigurationError(f"write the joined trace alongside {directory}, not into it", field="out")
    try:
        num_events = write_merged(profile, out)
    except OSError as error:
        raise ConfigurationError(f"cannot write {out}: {error}", field="out") from error
    click.echo(
        f"{out}: {num_events} events of {len(profile.processes)} processes, {len(profile.messages)} messages; "
        "open it in https://ui.perfetto.dev"
    )


@command.command("summary")
@_DIRECTORY
@_START
@_LENGTH
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, for programs.")
def summary(directory: Path, start_s: float, for_s: float | None, as_json: bool) -> None:
    """Print where the time of each worker and of a microbatch went."""
    figures = summarise(_load(directory, start_s, for_s))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
    else:
        make_console().print(render_summary(figures))


def _load(directory: Path, start_s: float, for_s: float | None) -> Profile:
    is_whole = start_s == 0 and for_s is None
    return load_profile(directory, None if is_whole else Window(start_s, for_s))
