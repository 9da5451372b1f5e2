"""How `up` and `demo` show what is starting, ready and failing: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from broker_pipeline.process.terminal import plain_table
from broker_pipeline.tools.local.supervisor import State, SupervisedProgram

_STYLES: dict[State, str] = {
    "waiting": "dim",
    "starting": "yellow",
    "ready": "green",
    "restarting": "bold yellow",
    "failed": "bold red",
    "dead": "bold red",
    "stopping": "yellow",
    "stopped": "dim",
}


class PlainView:
    """One line per change, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        """Print on a console."""
        self._console = console
        self._began = time.monotonic()

    def on_change(self, program: SupervisedProgram) -> None:
        """Print the change."""
        if program.state == "waiting":
            return
        parts = [
            program.name,
            program.state,
            f"({program.what})" if program.state == "starting" else _first_line(program.detail),
        ]
        self.say(" ".join(part for part in parts if part))

    def say(self, line: str) -> None:
        """Print a line of one's own."""
        self._console.print(
            f"{time.monotonic() - self._began:6.1f} s  {line}", markup=False, highlight=False, soft_wrap=True
        )

    warn = say

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Do nothing: there is nothing to begin or to end."""
        yield


class LiveView:
    """A table that follows the programs, with the latest line of one's own below it."""

    def __init__(self, console: Console) -> None:
        """Draw on a console, from `showing` on."""
        self._console = console
        self._programs: dict[str, SupervisedProgram] = {}
        self._changed_at: dict[str, float] = {}
        self._line = ""
        self._warning = ""
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=5)

    def on_change(self, program: SupervisedProgram) -> None:
        """Take the change up; the table is drawn again by itself."""
        self._programs[program.name] = program
        self._changed_at[program.name] = time.monotonic()

    def say(self, line: str) -> None:
        """Show a line below the table, in place of the one shown before."""
        self._line = line

    def warn(self, line: str) -> None:
        """Show a line between table and `say`'s, to the end."""
        self._warning += f"{line}\n"

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Draw the table until the end of the context; its last state stays on the screen."""
        with self._live:
            yield
            self._line = ""

    def _render(self) -> RenderableType:
        table = plain_table("part", "what", "state", "pid", "")
        for program in list(self._programs.values()):
            table.add_row(
                program.name, program.what, self._state(program), str(program.pid or ""), _first_line(program.detail)
            )
        return Group(table, Text(self._warning, style="bold yellow"), Text(self._line))

    def _state(self, program: SupervisedProgram) -> Text:
        text = program.state + (f" again, {program.num_restarts}" if program.num_restarts else "")
        if program.state in {"starting", "stopping"}:
            text += f" {time.monotonic() - self._changed_at[program.name]:.0f} s"
        return Text(text, style=_STYLES[program.state])


def local_view(console: Console) -> PlainView | LiveView:
    """Return the view that fits where the output goes."""
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(console)


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
