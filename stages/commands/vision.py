"""The command `broker-pipeline vision`."""

from typing import Any

import click

from broker_pipeline.config import common_options, option, parse_settings, split_common
from broker_pipeline.process.memory_limit import RUNTIME_BYTES, require_left
from broker_pipeline.service import ServiceContext, run_and_exit
from broker_pipeline.wire.edges.options import refuse_unread_edge_options
from stages.commands.options import compute_options
from stages.commands.vision_options import vision_options
from stages.worker.settings import VisionSettings


@click.command("vision")
@compute_options
@option("--name", default="vision-0", help="Name of this worker, unique in its pipeline.")
@vision_options
@common_options
def command(**options: Any) -> None:
    """Turn pictures and prompts into what the stages compute on.

    A vision worker fetches a job's pictures from the media store, runs the model's vision tower, and sends the visual
    rows straight to the stages that need them. Add workers to go faster: each request goes to the least loaded one.

    \b
      servers="--nats-url tls://broker --redis-url rediss://broker --secrets SECRETS"
      gpu-host$ broker-pipeline vision --model ARTIFACTS --name vision-0 $servers

    SIGTERM drains: requests that are here are finished, within --drain-s seconds.
    """
    refuse_unread_edge_options(options["edges"])
    common, rest = split_common(options)
    settings = parse_settings(VisionSettings, rest)

    async def main(context: ServiceContext) -> None:
        require_left(RUNTIME_BYTES, "Python and torch")
        from stages.vision.service import serve_vision  # noqa: PLC0415 - torch takes seconds; --help must not wait

        await serve_vision(context, settings)

    run_and_exit("vision", main, common, settings.needs)
