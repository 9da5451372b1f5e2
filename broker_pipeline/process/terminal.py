"""Tables and text for people, the same for all commands. Nothing is wrapped or cut off where there is no terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Collection
from typing import TextIO, cast

from rich.console import Console
from rich.table import Table

from broker_pipeline.process.standard_streams import silence

_PLAIN_WIDTH = 200
_JOINERS = "\u200c\u200d"
"""Parts of words and of emoji, although Unicode has them among the control characters."""


class DiagnosticStream:
    """A stream of a command whose work is elsewhere: where nobody can read it any more, the work goes on."""

    def __init__(self, stream: TextIO | None) -> None:
        """Wrap a stream, or None where the process was started without."""
        self._stream = stream

    @property
    def encoding(self) -> str:
        """How text becomes bytes."""
        return self._stream.encoding if self._stream is not None else "utf-8"

    def isatty(self) -> bool:
        """Whether a person sees it."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor; `OSError` where there is none."""
        if self._stream is None:
            raise OSError("no stream")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write, or lose, a text."""
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except OSError:
                silence(self._stream)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every text is flushed."""


def make_console(*, stderr: bool = False, may_vanish: bool = False) -> Console:
    """Return a console for standard output, or for standard error.

    With `may_vanish`, as always with standard error, what is printed is not the command's work, which goes on unread.
    """
    stream: TextIO | None = sys.stderr if stderr else sys.stdout
    if stderr or may_vanish:
        stream = cast("TextIO", DiagnosticStream(stream))
    is_terminal = stream is not None and stream.isatty()
    return Console(file=stream, highlight=False, width=None if is_terminal else _PLAIN_WIDTH)


def printable(text: object) -> str:
    """Return a text with everything escaped that would not print as itself: line ends, controls, undecodable bytes."""
    return "".join(character if _prints(character) else _escaped(character) for character in str(text))


def plain_table(*headings: str, title: str | None = None, right: Collection[str] = (), no_wrap: bool = True) -> Table:
    """Return a table without lines; columns whose headings are in `right` are aligned to that side."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=no_wrap)
    return table


def _prints(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    as_byte = character.encode("utf-8", "surrogateescape") if "\udc80" <= character <= "\udcff" else b""
    return f"\\x{as_byte[0]:02x}" if as_byte else character.encode("unicode_escape").decode()


def counted(num: int, noun: str) -> str:
    """Return a number with its noun, as `1 picture` and `2 pictures`."""
    return f"{num} {noun}{'' if num == 1 else 's'}"
