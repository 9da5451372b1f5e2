"""A group of commands that are imported when they are asked for, so that `--help` needs none of what they need."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from broker_pipeline.exit_codes import INTERRUPTED


class LazyGroup(click.Group):
    """Commands by name, each written as `module:attribute`."""

    def __init__(self, *, table: Mapping[str, str], **attributes: Any) -> None:
        """Make a group of the commands in `table`; `attributes` are those of any group."""
        super().__init__(**attributes)
        self._table = table

    def invoke(self, ctx: click.Context) -> Any:
        """Import and run the command; Ctrl-C that it does not handle itself ends it without a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one command; None where the table has none of this name."""
        return load_command(self._table[cmd_name]) if cmd_name in self._table else None


def load_command(path: str) -> click.Command:
    """Import the command that `path` names."""
    module_name, _, attribute = path.partition(":")
    command = getattr(importlib.import_module(module_name), attribute)
    assert isinstance(command, click.Command)
    return command
