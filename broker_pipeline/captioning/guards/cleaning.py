"""Cuts off a caption what models say around it: openings, quotes, markdown, offers of help."""

from __future__ import annotations

import re

_NOUN = r"(?:(?:provided|given|attached|uploaded)\ )?(?:image|picture|photo|photograph|video|clip|scene)"
_VERB = r"(?:shows|depicts|features|captures|displays|presents|portrays|showcases|illustrates|contains)"
_OPENING = re.compile(
    rf"""(?:
      (?:sure|certainly|of\ course)[!,.]\s+(?=here\b)
    | here(?:'s|\ is)\ (?:a|an|the|your)\ (?:[\w-]+\ ){{0,4}}(?:caption|description)
        (?:\ (?:of|for)\ (?:the|this|your)\ {_NOUN})?:\s*
    | (?:image\ )?(?:caption|description):\s*
    | (?:the|this)\ {_NOUN}\ (?:(?:clearly|vividly|also|primarily|prominently)\ )?{_VERB}
        (?:\ us)?:?\s+(?!that\b|up\b|off\b)
    | (?:this|the\ {_NOUN})\ is\ an?\ (?:image|picture|photo|photograph)\ of\s+
    | in\ (?:the|this)\ {_NOUN}(?:,\s+(?:(?:we|you|one)\ (?:can\ )?see\s+)?
        |\ (?:we|you|one)\ (?:can\ )?see\s+)
    )+""",
    re.IGNORECASE | re.VERBOSE,
)
_CLOSING = re.compile(
    r"(?:(?<=[.!?。\"”)])\s+|\n+)(?:please )?(?:let me know (?:if|whether)|feel free to|i hope this helps|"
    r"would you like me to|is there anything else|if you (?:need|want|would like|'d like|have any)\b[^.!?\n]*"
    r"\b(?:let me know|feel free|i can|ask))[^.!?\n]*[.!?]?\s*$",
    re.IGNORECASE,
)
_FENCE = re.compile(r"\s*```[\w+-]*[ \t]*\n((?:(?!```).)*?)\n?[ \t]*```\s*", re.DOTALL)
_BOLD = re.compile(r"(?<!\*)\*{2,}(?=[^\s*])([^*\n]+?)(?<=\S)\*{2,}")
_HEADER = re.compile(r"^(?:#{1,6}[ \t]+)+(?=\S)", re.MULTILINE)
_LINE_END = re.compile(r"[ \t\r]+$", re.MULTILINE)
_GAP = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
_MAX_CHARACTERS = 10_000
_BLANK_LINES = re.compile(r"\n{3,}")
_QUOTES = {'"': '"', "'": "'", "“": "”", "\u2018": "\u2019", "«": "»", "「": "」", "`": "`"}


def clean(text: str) -> str:
    """Return the caption alone. Cleaning twice is cleaning once, and something is always left.

    What is too long for a caption stays as it is.
    """
    while (
        len(text) <= _MAX_CHARACTERS and (cleaned := _cleaned(text)) != text
    ):  # each turn is shorter than the one before
        text = cleaned
    return text


def unfenced(text: str) -> str:
    """Return what is within a code fence, where the text is nothing else."""
    found = _FENCE.fullmatch(text)
    return found[1] if found else text


def _cleaned(text: str) -> str:
    for step in (_without_spare_space, unfenced, _without_markdown, _unquoted, _without_opening, _without_closing):
        shorter = step(text)
        if any(map(str.isalnum, shorter)):
            text = shorter
    return text


def _without_spare_space(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", _GAP.sub(" ", _LINE_END.sub("", text))).strip()


def _without_markdown(text: str) -> str:
    return _HEADER.sub("", _BOLD.sub(r"\1", text))


def _unquoted(text: str) -> str:
    opening = text[:1]
    closing = _QUOTES.get(opening, "")
    within = text[1:-1]
    is_quote = closing != "" and len(text) > 2 and text[-1] == closing
    return text if not is_quote or opening in within or closing in within else within


def _without_opening(text: str) -> str:
    found = _OPENING.match(text.replace("\u2019", "'"))
    if found is None:
        return text
    left = text[found.end() :]
    first = left[:1].upper()
    return first + left[1:] if len(first) == 1 else left


def _without_closing(text: str) -> str:
    return _CLOSING.sub("", text)
