"""`broker-pipeline bench`: the group; what computes lives with the stages and is imported when it is asked for."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "hop": "trials.bench.hop.command:command",
    "conductor": "trials.bench.conductor.command:command",
    "stage": "trials.bench.stage.command:command",
    "pipeline": "trials.bench.pipeline.command:command",
    "transformers": "trials.bench.transformers_command:command",
}


class _BenchGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module_name, _, attribute = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(name="bench", cls=_BenchGroup)
def command() -> None:
    """Measure what this machine does, each thing alongside what it is compared with.

    \b
    hop            one message through the transport, and raw NATS with the same bytes
    conductor      what a token costs the conductor's event loop
    stage          decode and prefill of a model's shape, and the floor that memory and arithmetic set
    pipeline       captions/s of the whole system, and of the same computation in one process
    transformers   the same work by transformers' generate

    Shapes are named (8B, 30B-A3B, …) and get random weights, so that nobody needs a checkpoint.
    """
