"""The command `broker-pipeline stage`."""

from collections.abc import Mapping
from typing import Any

import click

from broker_pipeline.config import common_options, option, parse_settings, refuse_unread, split_common
from broker_pipeline.process.memory_limit import RUNTIME_BYTES, require_left
from broker_pipeline.service import ServiceContext, run_and_exit
from broker_pipeline.wire.edges.options import refuse_unread_edge_options
from stages.commands.options import compute_options
from stages.commands.vision_options import VISION_OPTION_NAMES, vision_options
from stages.worker.settings import ComputeSettings, StageSettings, VisionSettings


@click.command("stage")
@compute_options
@option(
    "--blocks",
    required=True,
    help="Decoder layers START:STOP that this worker owns, such as 0:12, or 12: for the rest.",
)
@option("--name", default=None, help="Name of this worker, unique in its pipeline.  [default: stage-START-STOP]")
@option(
    "--share",
    default="",
    help="Name of the share that this stage belongs to: with several, each a whole model, conductors divide them among "
    "themselves.  [default: the one share without a name]",
)
@option(
    "--kv-tokens",
    default=None,
    type=click.IntRange(min=1),
    help="Tokens of keys and values to hold, over all sessions.  [default: what fits]",
)
@option(
    "--kv-dtype",
    default="auto",
    type=click.Choice(["auto", "fp8"]),
    help="Dtype to hold keys and values in: auto is that of --dtype; fp8 takes half of bfloat16's bytes, and rounds "
    "them to 4 bits of significand. All stages of a pipeline should have the same.",
)
@option(
    "--kv-share",
    default=None,
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Part of the memory left alongside the weights to use for them; less where workers share a device.  "
    "[default: all of a GPU's alongside what the largest microbatch needs, 0.25 of a host's]",
)
@option(
    "--max-batch-tokens",
    default=None,
    type=click.IntRange(min=1),
    help="Most tokens of one microbatch.  [default: 4096; 2048 on GPUs of less than 32 GB]",
)
@option(
    "--max-step-sessions",
    default=256,
    type=click.IntRange(min=0),
    help="Most sessions of a decode step that a GPU runs as one graph; 0 builds none.",
)
@option("--max-envelopes", default=64, type=click.IntRange(min=1), help="Microbatches that may wait here.")
@option(
    "--row-buffer-bytes",
    default=None,
    type=click.IntRange(min=1),
    help="Bytes of visual rows that may wait for their prefill.  [default: 2 GiB, at most 2.5 % of a GPU]",
)
@option("--row-ttl-s", default=300.0, type=click.FloatRange(min=0, min_open=True), help="Seconds that they may wait.")
@option(
    "--vision/--no-vision",
    default=False,
    help="Run a vision worker in this process as well: visual rows for these layers then stay on the device.",
)
@option("--vision-name", default=None, help="Name of that worker.  [default: vision- and the stage's name]")
@vision_options
@common_options
def command(**options: Any) -> None:
    """Serve a range of the model's decoder layers.

    Stages find each other through NATS and Redis: none is told its neighbours. Start as many as it takes to cover all
    layers; with several for one range, both serve and the loss of one fails nothing. Only the files of its own layers
    need to be on this host.

    \b
    A model of 36 layers on three hosts:
      servers="--nats-url tls://broker --redis-url rediss://broker --secrets SECRETS"
      host-a$ broker-pipeline stage --model ARTIFACTS --blocks 0:12  $servers
      host-b$ broker-pipeline stage --model ARTIFACTS --blocks 12:24 $servers
      host-c$ broker-pipeline stage --model ARTIFACTS --blocks 24:   $servers

    \b
    The whole model on one GPU, pictures included:
      gpu-host$ broker-pipeline stage --model ARTIFACTS --blocks 0: --vision

    SIGTERM drains: no new sessions come, those that are here may end within --drain-s seconds.
    """
    refuse_unread_edge_options(options["edges"])
    if options["kv_tokens"] is not None:
        refuse_unread("kv_share", why="has no effect with --kv-tokens: give one of them")
    common, rest = split_common(options)
    own = {key: value for key, value in rest.items() if key not in {"vision", "vision_name", *VISION_OPTION_NAMES}}
    settings = parse_settings(StageSettings, own)
    vision = _vision_settings(settings, rest)

    async def main(context: ServiceContext) -> None:
        require_left(RUNTIME_BYTES, "Python and torch")
        # torch takes seconds; --help must not wait
        if vision is None:
            from stages.stage.service import serve_stage  # noqa: PLC0415

            await serve_stage(context, settings)
        else:
            from stages.commands.stage_with_vision import serve_stage_with_vision  # noqa: PLC0415

            await serve_stage_with_vision(context, settings, vision)

    run_and_exit("stage", main, common, settings.needs)


def _vision_settings(stage: StageSettings, options: Mapping[str, Any]) -> VisionSettings | None:
    """Return how the vision worker alongside a stage is set; None if there shall be none.

    Raises:
        ConfigurationError: an option is for a vision worker, and there shall be none.
    """
    if not options["vision"]:
        refuse_unread("vision_name", *VISION_OPTION_NAMES, why="is for a vision worker: add --vision")
        return None
    default_name = f"vision-{stage.name or 'stage-' + stage.blocks.replace(':', '-').strip('-')}"
    shared = {field: getattr(stage, field) for field in ComputeSettings.__struct_fields__}
    own = {name: options[name] for name in VISION_OPTION_NAMES}
    return parse_settings(VisionSettings, {**shared, **own, "name": options["vision_name"] or default_name})
