"""The command `broker-pipeline status`."""

from __future__ import annotations

import asyncio
import contextlib

import click
import msgspec
from rich.live import Live

from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.process.terminal import make_console
from broker_pipeline.tools.gateway_options import gateway_options
from broker_pipeline.tools.operate.status_view import render_status

_WATCH_S = 1.0


@click.command()
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
def command(gateway: str, key: str | None, as_json: bool, watch: bool) -> None:
    """Show workers, routes, queue and rates of a pipeline, and what is missing.

    \b
    Examples:
      broker-pipeline status
      broker-pipeline status --gateway http://gateway:8080 --watch
      broker-pipeline status --json | jq .queue
    """
    if as_json:
        click.echo(msgspec.json.encode(asyncio.run(fetch_status(gateway, key))))
    elif watch:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_watch(gateway, key))
    else:
        make_console().print(render_status(asyncio.run(fetch_status(gateway, key))))


async def _watch(gateway: str, key: str | None) -> None:
    console = make_console()
    with Live(render_status(await fetch_status(gateway, key)), console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(_WATCH_S)
            live.update(render_status(await fetch_status(gateway, key)), refresh=True)
