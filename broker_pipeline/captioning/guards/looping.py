"""Whether a text ends in the same thing again and again, as models do that have lost their way."""

from __future__ import annotations

from collections.abc import Sequence

from broker_pipeline.captioning.guards.words import words_of

MAX_PHRASE = 20
MIN_PHRASES = 4
MIN_LINES = 3
MIN_CHARACTERS = 20
_MAX_WORDS = MAX_PHRASE * MIN_PHRASES + 1


def repeated_end(text: str) -> str | None:
    """Return what a text ends in too often: a phrase, a line or a character; None where it is all right."""
    characters = "".join(text[-1000:].split())
    if characters and _ends_with(characters, 1, MIN_CHARACTERS):
        return characters[-1]
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    if (line := _of_lines(lines)) is not None:
        return line
    words = words_of(text)[-_MAX_WORDS:]
    return _phrase(words) or _phrase(words[:-1])  # the last word may be cut off


def _of_lines(lines: Sequence[str]) -> str | None:
    if _ends_with(lines, 1, MIN_LINES):
        return lines[-1]
    is_cut = len(lines) > MIN_LINES and lines[-2].startswith(lines[-1])
    return lines[-2] if is_cut and _ends_with(lines[:-1], 1, MIN_LINES) else None


def _phrase(words: Sequence[str]) -> str | None:
    for size in range(1, MAX_PHRASE + 1):
        phrase = words[-size:]
        if len("".join(phrase)) > 1 and _ends_with(words, size, MIN_PHRASES):
            return " ".join(phrase)
    return None


def _ends_with(pieces: Sequence[str], size: int, count: int) -> bool:
    """Whether the last `size` pieces stand there `count` times in a row."""
    num = size * count
    return len(pieces) >= num and pieces[-num:-size] == pieces[size - num :]
