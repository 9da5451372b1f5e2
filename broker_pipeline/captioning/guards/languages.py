"""Which language a caption is in: by its letters, and where several languages share them, by their commonest words."""

from __future__ import annotations

import re

from broker_pipeline.captioning.guards.scripts import share_of
from broker_pipeline.captioning.guards.words import words_of

_LATIN = {
    "de": "der die das ein eine einen einem einer eines und auf mit ist sind von vom im am zu zum den dem des vor",
    "en": "the a an and of on in with is are to its it that there this at by from for his her their",
    "es": "el la los las un una unos de del y en con es son al por se su sobre que",
    "fr": "le la les un une des du de et sur avec est sont dans au aux en qui se deux",
    "it": "il lo la gli i un una uno di del della dei e su con è sono in nel nella che",
    "nl": "de het een en op met is zijn van in voor aan naar te die dat twee",
    "pt": "o a os as um uma de do da dos das e em com é são no na ao que",
}
_WORDS = {code: frozenset(words.split()) for code, words in _LATIN.items()}
_SCRIPTS = {"ar": "arabic", "el": "greek", "he": "hebrew", "hi": "devanagari", "ja": "japanese", "ko": "hangul",
            "ru": "cyrillic", "th": "thai", "uk": "cyrillic", "zh": "han"}  # fmt: skip
LANGUAGES = tuple(sorted({*_WORDS, *_SCRIPTS}))
"""Codes of ISO 639-1. Where there are no `_WORDS`, letters alone count: Ukrainian passes for Russian, and Chinese for
Japanese, whose tags may have no kana."""
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|(?<!\w)'[^']*'(?!\w)")
_LEAST_WORDS = 2


def other_language(wanted: str, text: str) -> str | None:
    """Return what a text seems to be in place of the language `wanted`, None where nothing speaks against that.

    What stands in quotes does not count: pictures show signs. Tags, which have no such words, are of any language.
    """
    said = _QUOTED.sub(" ", text)
    script = _SCRIPTS.get(wanted, "latin")
    if share_of(script, said) < 0.5:
        return f"not in {script} letters"
    if wanted not in _WORDS:
        return None
    there = frozenset(words_of(said))
    most, other = max((len(there & words), code) for code, words in _WORDS.items() if code != wanted)
    return other if most >= _LEAST_WORDS and most > len(there & _WORDS[wanted]) else None
