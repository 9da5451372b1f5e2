"""The command `broker-pipeline doctor`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click
import msgspec

from broker_pipeline.config import (
    DEFAULT_NATS_URL,
    DEFAULT_REDIS_URL,
    SECRETS_OPTION,
    PathType,
    option,
    parse_settings,
)
from broker_pipeline.exit_codes import INTERRUPTED, OK, SOME_FAILED
from broker_pipeline.logs import configure_logs
from broker_pipeline.process.terminal import make_console
from broker_pipeline.tools.doctor.checks import DoctorSettings, checks_of
from broker_pipeline.tools.doctor.examination import examine
from broker_pipeline.tools.doctor.finding import Finding
from broker_pipeline.tools.doctor.view import render_findings
from broker_pipeline.tools.signals import until_interrupted


@click.command()
@option("--nats-url", default=DEFAULT_NATS_URL, help="NATS server, as services have it.")
@option("--redis-url", default=DEFAULT_REDIS_URL, help="Redis, as services have it.")
@SECRETS_OPTION
@option("--namespace", default="bp", help="Prefix of every subject, stream and key.")
@option("--pipeline", default="main", help="Name of the pipeline.")
@option("--model", default=None, type=PathType(), help="Artifact on this host: its files are looked at as well.")
@option(
    "--blocks",
    default=(),
    multiple=True,
    help="Decoder layers START:STOP of a stage on this host, whose files have to be there.",
)
@option("--vision/--no-vision", default=False, help="Whether a vision worker is to run here: its files as well.")
@option("--full", is_flag=True, envvar=None, show_envvar=False, help="Hash every byte of the weights that are here.")
@option("--device", default="auto", help="What workers are started with: auto, cpu, cuda or cuda:N.")
@option("--edges", default="auto", type=click.Choice(["auto", "nats", "shm", "tcp"]), help="As workers have it.")
@option("--edge-tls", default="on", type=click.Choice(["on", "off"]), help="As workers have it.")
@option(
    "--timeout-s",
    default=6.0,
    type=click.FloatRange(min=0, min_open=True),
    envvar=None,
    show_envvar=False,
    help="Seconds that servers may take.",
)
@option("--json", "as_json", is_flag=True, envvar=None, show_envvar=False, help="Print it as JSON, for programs.")
def command(as_json: bool, **options: Any) -> None:
    """Look at everything that this host needs to do its part, and say what to do about what is wrong.

    Broker, Redis, certificate, clock, packages, GPU, compiler, shared memory, disks, the artifact's files, who is in
    the pipeline, and how each worker is reached from here. All at once; what is down hangs nothing. It changes nothing:
    NATS stores a message for it in a stream of its own, which is removed again.

    \b
    Exit codes: 0 nothing has to be mended, 1 something has to, 2 wrong usage, 130 interrupted.

    \b
    Examples:
      broker-pipeline doctor
      broker-pipeline doctor --nats-url tls://broker --redis-url rediss://broker --secrets /etc/secrets
      broker-pipeline doctor --model /srv/8b --full --json | jq '.findings[] | select(.level != "ok")'
    """
    settings = parse_settings(DoctorSettings, options)
    configure_logs("doctor", level="critical")  # what is wrong, findings say
    findings = asyncio.run(until_interrupted(_examine(settings)))
    if findings is None:
        sys.exit(INTERRUPTED)
    is_well = all(finding.level != "fail" for finding in findings)
    if as_json:
        click.echo(msgspec.json.encode({"ok": is_well, "findings": findings}))
    else:
        make_console().print(render_findings(findings))
    sys.exit(OK if is_well else SOME_FAILED)


async def _examine(settings: DoctorSettings) -> list[Finding]:
    async with checks_of(settings) as checks:
        return await examine(checks)
