"""The command `broker-pipeline`. Commands of other packages are found by name and imported only when used."""

from __future__ import annotations

import errno
import os
import signal
import sys

import click

from broker_pipeline import __version__
from broker_pipeline.config import ENV_PREFIX, check_environment, flag_of
from broker_pipeline.errors import ConfigurationError, PipelineError
from broker_pipeline.exit_codes import CONFIGURATION, OUTPUT, exit_code_of
from broker_pipeline.lazy_group import LazyGroup, load_command
from broker_pipeline.process.end_signals import end_signals
from broker_pipeline.process.standard_streams import escape_unprintable, open_closed_streams, say_error, silence

# What an extra of the distribution brings, by module name.
_EXTRAS = {
    "torch": "worker",
    "safetensors": "worker",
    "skimage": "demo",
    "huggingface_hub": "hub",
    "transformers": "parity",
}

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

# In the order in which a newcomer meets them.
COMMANDS = {
    "demo": "broker_pipeline.tools.demo.command:command",
    "up": "broker_pipeline.tools.local.command:command",
    "caption": "broker_pipeline.tools.caption.command:command",
    "status": "broker_pipeline.tools.operate.status_command:command",
    "doctor": "broker_pipeline.tools.doctor.command:command",
    "failed": "broker_pipeline.tools.operate.failed_command:command",
    "drain": "broker_pipeline.tools.operate.drain_command:command",
    "keys": "broker_pipeline.tools.operate.keys_command:command",
    "secrets": "broker_pipeline.tools.operate.secrets_command:command",
    "export": "export.command:command",
    "fetch": "broker_pipeline.tools.fetch.command:command",
    "probe": "trials.hosts.probe_command:command",
    "plan": "trials.hosts.plan_command:command",
    "gateway": "gateway.command:command",
    "conductor": "broker_pipeline.conductor.command:command",
    "vision": "stages.commands.vision:command",
    "stage": "stages.commands.stage:command",
    "soak": "trials.soak.command:command",
    "bench": "trials.bench.command:command",
    "trace": "broker_pipeline.tools.trace.command:command",
}


def known_variables() -> set[str]:
    """Return every environment variable that some command reads."""
    return {name for command in COMMANDS for name in _variables_of(load_command(COMMANDS[command]))}


def _variables_of(command: click.Command) -> set[str]:
    names: set[str] = set()
    for parameter in command.params:
        variables = parameter.envvar
        names.update([variables] if isinstance(variables, str) else variables or ())
    if isinstance(command, click.Group):
        for child in command.commands.values():
            names |= _variables_of(child)
    return names


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="broker-pipeline")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run one Qwen3-VL model cut over the GPUs of several hosts, joined by NATS and Redis.

    \b
    Try it:            broker-pipeline demo
    On one machine:    broker-pipeline export CHECKPOINT ARTIFACTS
                       broker-pipeline up --model ARTIFACTS --stages 3
                       broker-pipeline caption PICTURES/ --out captions.jsonl
    On several hosts:  probe each of them, plan, and run gateway, conductor, vision and stage where they belong
    """
    given = {name for name in os.environ if name.startswith(ENV_PREFIX)}
    own = load_command(COMMANDS[context.invoked_subcommand or ""])
    if not given <= _variables_of(own):  # importing all commands takes longer than many of them run
        check_environment(known_variables())


def run() -> None:
    """Be the process of a command: on a busy host an interpreter takes long to end, and what is done is not killed."""
    try:
        main()
    finally:
        for number in end_signals():
            signal.signal(number, signal.SIG_IGN)


def main() -> None:
    """Run the command line; errors made on purpose, and full disks, end in one line and their exit code."""
    open_closed_streams()
    escape_unprintable(sys.stdout, sys.stderr)
    try:
        cli(standalone_mode=True)
    except PipelineError as error:
        say_error(describe(error), sys.stderr)
        sys.exit(exit_code_of(error))
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        silence(sys.stdout)
        say_error(f"cannot write {error.filename or 'the output'}: {error.strerror}", sys.stderr)
        sys.exit(OUTPUT)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        say_error(f"this needs {error.name}: pip install 'broker-pipeline[{extra}]'", sys.stderr)
        sys.exit(CONFIGURATION)


def describe(error: PipelineError) -> str:
    """Return an error's message, with the flag that is to blame where there is one."""
    if not isinstance(error, ConfigurationError) or error.field is None or not error.field.islower():
        return error.message
    flag = flag_of(error.field)
    return error.message if flag in error.message else f"{flag}: {error.message}"
