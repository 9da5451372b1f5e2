"""Where the lines of a log stand, by what they are about: on disk, so that ten million lines take no memory.

    (place, content, question, model) ─┐
    (name, question, model)           ─┼─► offset of the line in the log
    (content, question, model)        ─┘
    (place, content, question, model) ───► how often that has failed

Keys are hashes. The index is made anew from the log whenever this is opened, so that it is never wrong about it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Literal

Kind = Literal["exact", "name", "content", "failures"]
NOWHERE = -1
"""Offset of a line that cannot be read again: standard output has it."""
_KEY_BYTES = 16


class LogIndex:
    """What a log has of which question. Belongs to one thread; `close` deletes it."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", isolation_level=None)  # a file of SQLite's own, with a cache before it
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("CREATE TABLE known (key BLOB PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
        self._rows.execute("BEGIN")

    def close(self) -> None:
        """Delete it."""
        self._rows.close()

    def put(self, kind: Kind, parts: tuple[str, ...], offset: int) -> bool:
        """Note where a line is; the last one counts. Returns whether there was none before."""
        is_new = self.get(kind, parts) is None
        self._rows.execute("INSERT OR REPLACE INTO known VALUES (?, ?)", (_key(kind, parts), offset))
        return is_new

    def get(self, kind: Kind, parts: tuple[str, ...]) -> int | None:
        """Return the offset of a line, or a number of failures; None where there is none."""
        found = self._rows.execute("SELECT value FROM known WHERE key = ?", (_key(kind, parts),)).fetchone()
        return None if found is None else int(found[0])

    def count_failure(self, parts: tuple[str, ...]) -> None:
        """Note that something has failed once more."""
        self._rows.execute(
            "INSERT INTO known VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1",
            (_key("failures", parts),),
        )


def _key(kind: Kind, parts: tuple[str, ...]) -> bytes:
    text = "\0".join((kind, *parts)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=_KEY_BYTES).digest()
