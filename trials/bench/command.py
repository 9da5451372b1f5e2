"""`broker-pipeline bench`: the group."""

from __future__ import annotations

import click

from broker_pipeline.lazy_group import LazyGroup

_COMMANDS = {
    "hop": "trials.bench.hop.command:command",
    "edges": "trials.bench.edges.command:command",
    "conductor": "trials.bench.conductor.command:command",
    "gateway": "trials.bench.gateway.command:command",
    "serve": "trials.bench.serve.command:command",
    "stage": "trials.bench.stage.command:command",
    "tower": "trials.bench.tower.command:command",
    "pipeline": "trials.bench.pipeline.command:command",
    "transformers": "trials.bench.transformers_command:command",
}


@click.group(name="bench", cls=LazyGroup, table=_COMMANDS)
def command() -> None:
    """Measure what this machine does, each thing alongside what it is compared with.

    \b
    hop            one message through the transport, and raw NATS with the same bytes
    edges          payloads between two processes, by every edge, alongside sockets and memcpy
    conductor      what a token costs the conductor's event loop
    gateway        captions/s through the gateway, with workers that answer at once
    serve          any server of OpenAI's API at a given rate: time to first token, time per token
    stage          decode and prefill of a model's shape, and the floor that memory and arithmetic set
    tower          the vision tower, as graphs and launched kernel by kernel
    pipeline       captions/s of the whole system, and of the same computation in one process
    transformers   the same work by transformers' generate

    Shapes are named (8B, 30B-A3B, …) and get random weights, so that nobody needs a checkpoint.
    """
