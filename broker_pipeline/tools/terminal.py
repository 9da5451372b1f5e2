"""Where commands print, and their tables. On a terminal these fit it; in a pipe nothing is folded or cut off."""

from __future__ import annotations

import sys
from collections.abc import Collection

from rich.console import Console
from rich.table import Table

_PLAIN_WIDTH = 200


def make_console(*, stderr: bool = False) -> Console:
    """Return a console for standard output, or for standard error."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _PLAIN_WIDTH)


def plain_table(*headings: str, title: str | None = None, right: Collection[str] = (), no_wrap: bool = True) -> Table:
    """Return a table without lines; columns whose headings are in `right` are aligned to that side."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=no_wrap)
    return table
