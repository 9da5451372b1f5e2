"""Words, in scripts with spaces between them and in those without."""

from __future__ import annotations

import re

_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, kana and Han: each character counts as a word."""
_PIECE = re.compile(rf"[{_NO_SPACES}]|[^\s{_NO_SPACES}]+")
_HAS_NO_SPACES = re.compile(rf"[{_NO_SPACES}]")
_PUNCTUATION = re.compile(r"^[\W_]+|[\W_]+$")


def words_of(text: str) -> list[str]:
    """Return a text's words without punctuation around them, in one case."""
    words = (_PUNCTUATION.sub("", piece) for piece in _PIECE.findall(text.casefold()))
    return [word for word in words if word]


def pattern_of(word: str) -> re.Pattern[str]:
    """Return what finds a word, or several, as a whole in a text in one case (see `casefold`)."""
    words = word.casefold().split()
    start = "" if _HAS_NO_SPACES.match(words[0][0]) else r"(?<!\w)"
    end = "" if _HAS_NO_SPACES.match(words[-1][-1]) else r"(?!\w)"
    return re.compile(start + r"\s+".join(map(re.escape, words)) + end)
