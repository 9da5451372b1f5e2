"""The command `broker-pipeline conductor`."""

from typing import Any

import click

from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.config import PathType, common_options, option, parse_settings, split_common
from broker_pipeline.service import ServiceContext, run_and_exit
from broker_pipeline.storage.jobs import ACK_WAIT_S

_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command("conductor")
@option(
    "--model",
    required=True,
    type=PathType(exists=True, file_okay=False),
    help="Artifact directory; only its small files are read, so that a copy without weights will do.",
)
@option(
    "--dtype",
    default="auto",
    type=click.Choice(["auto", "bfloat16", "float32"]),
    help="Dtype that all workers have to compute in; auto is that of the stage that was started first.",
)
@option("--max-sessions", default=512, type=click.IntRange(min=1), help="Sessions computed at a time, per route.")
@option("--max-jobs", default=1024, type=click.IntRange(min=1), help="Jobs taken from the queue and not finished.")
@option("--max-preparing", default=128, type=click.IntRange(min=1), help="Sessions in preparation per vision worker.")
@option(
    "--max-waiting", default=64, type=click.IntRange(min=1), help="Prepared sessions of each route that have not begun."
)
@option("--max-batch-tokens", default=8192, type=click.IntRange(min=1), help="Most tokens of one microbatch.")
@option("--kv-step-tokens", default=128, type=click.IntRange(min=1), help="Tokens of KV that sessions reserve ahead.")
@option(
    "--copy-prefixes/--no-copy-prefixes",
    default=True,
    help="Copy the KV of prompts that begin as a running one does, such as several about one picture.",
)
@option(
    "--speculate-tokens",
    default=0,
    type=click.IntRange(0, 64),
    help="Tokens to draft for a session at a time by what it has said before, and to verify in one step: the same "
    "outputs in fewer steps where text repeats itself; 0: none.",
)
@option(
    "--speculate-sessions",
    type=click.IntRange(min=1),
    help="Draft only where a microbatch has no more sessions.  "
    "[default: as many as have 16 tokens together, with their drafts]",
)
@option(
    "--kept-prefix-share",
    default=0.5,
    type=click.FloatRange(min=0, max=1),
    help="Most of each stage's KV that finished sessions leave for others to begin with, while nobody needs the room; "
    "0 keeps nothing.",
)
@option(
    "--default-max-tokens",
    type=click.IntRange(min=1),
    help="Output limit of jobs that ask for none, cut to the room that their prompts leave. "
    "[default: max_new_tokens of the model's generation_config.json, else a share of the room, from 512 tokens on; "
    "`status` shows it]",
)
@option("--max-attempts", default=5, type=click.IntRange(min=1), help="Attempts at one token before a job fails.")
@option("--max-deliveries", default=20, type=click.IntRange(min=1), help="Deliveries of one job before it fails.")
@option(
    "--on-other-model",
    default="restart",
    type=click.Choice(["restart", "fail"]),
    help="What becomes of jobs under way with tokens of another model: they begin again with this one from token 0, or "
    "fail.",
)
@option(
    "--predicted-captions-per-s",
    type=click.FloatRange(min=0, min_open=True),
    help="What the plan of this pipeline says; `caption --dry-run` goes by it until there is a rate.",
)
@option("--heartbeat-timeout-s", default=2.5, type=_SECONDS, help="Silence after which a worker counts as dead.")
@option("--deadline-s", default=30.0, type=_SECONDS, help="Seconds for a microbatch, beyond what is expected.")
@option("--first-deadline-s", default=180.0, type=_SECONDS, help="The same while a stage has never computed so much.")
@option("--prepare-timeout-s", default=60.0, type=_SECONDS, help="Seconds for a vision worker to prepare a session.")
@option(
    "--route-timeout-s",
    default=1800.0,
    type=_SECONDS,
    help="Seconds that a job under way waits for stages that can hold it, before it fails.",
)
@option(
    "--lease-ttl-s",
    default=10.0,
    type=_SECONDS,
    help="Seconds that Redis may be away before another conductor takes over; one that is gone is replaced sooner.",
)
@option(
    "--ack-wait-s", default=ACK_WAIT_S, type=_SECONDS, help="Seconds after which a dead conductor's jobs come back."
)
@option(
    "--metrics-port",
    default=None,
    type=click.IntRange(min=0, max=65535),
    help="Port for Prometheus metrics, on this host's loopback interface.  [default: none]",
)
@common_options
def command(**options: Any) -> None:
    """Drive a pipeline: take jobs from the queue, schedule them on the stages, finish them.

    Start a second one with the same flags, and it waits as a standby that takes over when the first dies. Where stages
    are divided into shares (`stage --share`), conductors have some of them each. A conductor needs no GPU and keeps
    nothing that is not in NATS or Redis: killed at any moment, its jobs go on from the tokens that they had.

    \b
      servers="--nats-url tls://broker --redis-url rediss://broker --secrets SECRETS"
      host-a$ broker-pipeline conductor --model ARTIFACTS $servers

    SIGTERM: takes no more jobs, finishes what stages are computing within --drain-s seconds, and requeues the rest.
    """
    common, rest = split_common(options)
    settings = parse_settings(ConductorSettings, rest)

    async def main(context: ServiceContext) -> None:
        from broker_pipeline.conductor.conductor import serve_conductor  # noqa: PLC0415 - keeps --help quick

        await serve_conductor(context, settings)

    run_and_exit("conductor", main, common)
