"""What can be wrong with a caption: a function each, which returns the reason, None where all is well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from broker_pipeline.captioning.guards.languages import other_language
from broker_pipeline.captioning.guards.looping import repeated_end
from broker_pipeline.captioning.guards.refusal import is_refusal
from broker_pipeline.captioning.guards.schema import why_not_json
from broker_pipeline.captioning.guards.scripts import share_of
from broker_pipeline.captioning.guards.settings import GuardSettings
from broker_pipeline.captioning.guards.words import pattern_of, words_of
from broker_pipeline.process.terminal import printable

_MAX_SHOWN = 60
_pattern = lru_cache(maxsize=1024)(pattern_of)


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules know beside the text."""

    settings: GuardSettings
    finish_reason: str | None = None


Rule = Callable[[str, Facts], str | None]


def empty(text: str, _facts: Facts) -> str | None:
    """Refuse nothing but white space."""
    return None if text.strip() else "nothing was said"


def punctuation(text: str, _facts: Facts) -> str | None:
    """Refuse what has no letter and no digit."""
    return None if any(map(str.isalnum, text)) else "no letter or digit"


def refusal(text: str, _facts: Facts) -> str | None:
    """Refuse what the model said instead of a caption."""
    return f"the model declined: {_shown(text.strip())}" if is_refusal(text) else None


def loop(text: str, facts: Facts) -> str | None:
    """Refuse what ends in the same again and again."""
    if facts.finish_reason == "repetition":
        return "ended as endless repetition"
    end = repeated_end(text)
    return None if end is None else f"ends in the same again and again: {_shown(end)}"


def cut_off(_text: str, facts: Facts) -> str | None:
    """Refuse what ended at the limit of tokens."""
    return "cut off at max_tokens" if facts.finish_reason == "length" else None


def script(text: str, facts: Facts) -> str | None:
    """Refuse what is mostly written in other letters."""
    wanted = facts.settings.script
    return None if wanted is None or share_of(wanted, text) >= 0.5 else f"most letters are not {wanted}"


def language(text: str, facts: Facts) -> str | None:
    """Refuse what seems to be in another language."""
    wanted = facts.settings.language
    other = other_language(wanted, text) if wanted else None
    return None if other is None else f"seems to be {other}, and not {wanted}"


def too_short(text: str, facts: Facts) -> str | None:
    """Refuse too few words or characters."""
    settings = facts.settings
    if settings.min_words and (num_words := len(words_of(text))) < settings.min_words:
        return f"{num_words} words, fewer than {settings.min_words}"
    is_short = len(text) < settings.min_characters
    return f"{len(text)} characters, fewer than {settings.min_characters}" if is_short else None


def too_long(text: str, facts: Facts) -> str | None:
    """Refuse too many words or characters."""
    settings = facts.settings
    if settings.max_words is not None and (num_words := len(words_of(text))) > settings.max_words:
        return f"{num_words} words, more than {settings.max_words}"
    most = settings.max_characters
    return f"{len(text)} characters, more than {most}" if most is not None and len(text) > most else None


def json(text: str, facts: Facts) -> str | None:
    """Refuse what is no JSON, or not as its schema says."""
    return why_not_json(text, facts.settings.json_schema)


def forbidden(text: str, facts: Facts) -> str | None:
    """Refuse what holds one of the forbidden words."""
    found = next((word for word in facts.settings.forbidden if _pattern(word).search(text.casefold())), None)
    return None if found is None else f"has the word {_shown(found)}"


def required(text: str, facts: Facts) -> str | None:
    """Refuse what lacks one of the required words."""
    lacking = next((word for word in facts.settings.required if not _pattern(word).search(text.casefold())), None)
    return None if lacking is None else f"lacks the word {_shown(lacking)}"


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        empty, punctuation, refusal, loop, cut_off, script, language, too_short, too_long, json, forbidden, required,
    )
}  # fmt: skip
"""All rules in the order in which they are asked."""


def _shown(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"
