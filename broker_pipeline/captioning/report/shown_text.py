"""Texts of other people as the page shows them: they end somewhere, and every character is seen."""

from __future__ import annotations

from broker_pipeline.process.terminal import printable

_LIMIT = 4000


def shown(text: object, limit: int = _LIMIT) -> str:
    """Return a text with its lines, of at most `limit` characters; what would not print as itself is escaped.

    So nothing in it turns the direction of its neighbours, and all of it is UTF-8.
    """
    whole = str(text)
    lines = "\n".join(printable(line) for line in whole[:limit].split("\n"))
    return lines if len(whole) <= limit else f"{lines}… ({len(whole):,} characters)"
