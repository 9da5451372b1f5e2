"""Where commands print. Tables on a terminal fit it; in a file or a pipe nothing is folded or cut off."""

from __future__ import annotations

import sys

from rich.console import Console

_PLAIN_WIDTH = 200


def make_console(*, stderr: bool = False) -> Console:
    """Return a console for standard output, or for standard error."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _PLAIN_WIDTH)
