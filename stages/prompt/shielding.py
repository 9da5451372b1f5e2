"""Characters of users' texts that no template can mistake for its own.

A control token counts only where the template wrote it. So in every text that goes into a template, one character that
control tokens consist of is replaced by a stand-in, a lone surrogate, which valid Unicode never holds; the template's
own control tokens are then the only ones in what it renders, and the stand-ins become characters again:

    "what does <|im_" + "end|>" mean?"  ─►  "what does <⟨7c⟩im_" + "end⟨7c⟩> mean?"  ─► template ─► split ─► characters

A text may be cut into parts at will, since each part has its stand-ins, whatever it is joined to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from broker_pipeline.errors import InvalidRequestError

_BASE = 0xDC00  # the stand-in of an ASCII character is this many code points above it
_STAND_IN = re.compile("[\udc00-\udc7f]")


def hide(value: Any, characters: str) -> Any:
    """Replace the ASCII `characters` in every string of a value, keys included, by their stand-ins.

    Raises:
        InvalidRequestError: a string is not valid Unicode.
    """
    if isinstance(value, str):
        return _hide_in(value, characters)
    if isinstance(value, Mapping):
        return {hide(key, characters): hide(item, characters) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide(item, characters) for item in value]
    return value


def show(text: str) -> str:
    """Return a text with the characters that `hide` took out."""
    return _STAND_IN.sub(lambda match: chr(ord(match.group()) - _BASE), text)


def _hide_in(text: str, characters: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"the text is not valid Unicode: {error}", field="messages") from error
    for character in characters:
        text = text.replace(character, chr(_BASE + ord(character)))
    return text
