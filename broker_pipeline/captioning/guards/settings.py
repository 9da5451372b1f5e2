"""What guards look for, and what is done where they find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from broker_pipeline.captioning.guards.languages import LANGUAGES
from broker_pipeline.captioning.guards.scripts import SCRIPTS
from broker_pipeline.errors import ConfigurationError

DEFAULT_RULES = ("empty", "punctuation", "refusal", "loop")
SWITCHES = (*DEFAULT_RULES, "cut_off", "json")
"""Rules that are on by their names; the others are on where they have something to look for."""
Last = Literal["mark", "drop", "fail"]
"""What becomes of the last try: it is kept and marked, left out for good, or failed, which another run tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Rules for the captions of a run. Raises `ConfigurationError` for what no rule can be."""

    rules: tuple[str, ...] = DEFAULT_RULES
    script: str | None = None
    """Of which most letters are."""
    language: str | None = None
    """Of which the caption is, as far as letters and common words tell."""
    min_words: int = 0
    max_words: int | None = None
    """In Chinese, Japanese and Thai, characters."""
    min_characters: int = 0
    max_characters: int | None = None
    json_schema: str | None = None
    """JSON Schema, as text, that the caption has to follow; it has to be JSON then."""
    forbidden: tuple[str, ...] = ()
    """Words, or several with spaces between them, whatever their case."""
    required: tuple[str, ...] = ()
    num_retries: int = 2
    last: Last = "mark"
    retry_temperature: float = 0.7
    """Of further tries where the first was greedy."""

    def __post_init__(self) -> None:
        _check_known("guard", self.rules, SWITCHES)
        _check_known("script", (self.script,) if self.script is not None else (), tuple(SCRIPTS))
        _check_known("language", (self.language,) if self.language is not None else (), LANGUAGES)
        _check_known("decision", (self.last,), get_args(Last))
        for name in ("words", "characters"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least < 0 or (most is not None and most < max(1, least)):
                raise ConfigurationError(f"no caption has {least} to {most} {name}", field=f"max_{name}")
        if not all(word.strip() for word in self.forbidden + self.required):
            raise ConfigurationError("a forbidden or required word is empty", field="forbidden")
        if self.num_retries < 0 or not 0 < self.retry_temperature <= 2:
            raise ConfigurationError("retries are 0 or more, at a temperature above 0 and up to 2", field="num_retries")

    def is_on(self, rule: str) -> bool:
        """Whether a rule is to be asked."""
        return rule in self.rules or rule not in SWITCHES or (rule == "json" and self.json_schema is not None)


def _check_known(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ConfigurationError(f"there is no {kind} {name!r}; there are {', '.join(known)}", field=kind)
