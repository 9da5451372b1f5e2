"""The scripts that letters are of."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

SCRIPTS: dict[str, frozenset[str]] = {
    "arabic": frozenset({"ARABIC"}),
    "cjk": frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC"}),
    "cyrillic": frozenset({"CYRILLIC"}),
    "devanagari": frozenset({"DEVANAGARI"}),
    "greek": frozenset({"GREEK"}),
    "han": frozenset({"CJK", "IDEOGRAPHIC"}),
    "hangul": frozenset({"HANGUL"}),
    "hebrew": frozenset({"HEBREW"}),
    "japanese": frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"}),
    "latin": frozenset({"LATIN"}),
    "thai": frozenset({"THAI"}),
}
"""First words of the Unicode names of each script's letters."""


def share_of(script: str, text: str) -> float:
    """Return the share of a text's letters that are of a script; 1 where it has no letters."""
    letters = [letter for letter in unicodedata.normalize("NFKC", text) if letter.isalpha()]
    wanted = SCRIPTS[script]
    return sum(_first_word(letter) in wanted for letter in letters) / len(letters) if letters else 1.0


@lru_cache(maxsize=8192)
def _first_word(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]
