"""Text to token ids, without keeping Python to itself, and no further than somebody wants to know.

The library's `encode` holds the interpreter's lock throughout (2 s for 2 MB), its batched form does not: so an event
loop next to it goes on. A long text is encoded in pieces, and none after the one with which it is too long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tokenizers import Tokenizer

PIECE_CHARS = 65_536
_LETTERS = "A-Za-zÀ-ÖØ-öø-ÿА-яぁ-ゖァ-ヺ一-龥가-힣"
_ENDS_OF_WORDS = " ,.;:!?\n\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"


class TextEncoder:
    """Encodes what lies between control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Tokenizers of this family never join one of these letters with such an end after it, nor does normalisation.
        # An added token might.
        added = "".join(token.content for token in tokenizer.get_added_tokens_decoder().values())
        ends = "".join(end for end in _ENDS_OF_WORDS if end not in added)
        self._cut = re.compile(f"(?<=[{_LETTERS}])(?=[{re.escape(ends)}])") if ends else None

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Return the ids of a text; of one with more than `max_tokens` only some of them, more than `max_tokens`."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids
            if max_tokens is not None and len(ids) > max_tokens:
                break
        return ids

    def _pieces(self, text: str) -> Iterator[str]:
        """Cut a text at ends of words, `PIECE_CHARS` from each other or more: what lies between has ids of its own."""
        start = 0
        while self._cut and len(text) - start > PIECE_CHARS and (cut := self._cut.search(text, start + PIECE_CHARS)):
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:]
