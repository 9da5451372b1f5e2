"""Text to token ids, without keeping Python to itself, and no further than somebody wants to know.

The library's `encode` holds the interpreter's lock throughout (2 s for 2 MB), its batched form does not: so an event
loop next to it goes on. A long text is encoded in pieces, and none after the one with which it is too long.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from tokenizers import Tokenizer

PIECE_CHARS = 65_536
_LETTERS = "A-Za-zÀ-ÖØ-öø-ÿА-яぁ-ゖァ-ヺ一-龥가-힣"
_SOME_LETTERS = "aZéяあ漢한"
_ENDS_OF_WORDS = " ,.;:!?\n\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"


class TextEncoder:
    """Encodes what lies between control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Normalisation never joins one of these letters with such an end after it. An added token might.
        added = "".join(token.content for token in tokenizer.get_added_tokens_decoder().values())
        ends = "".join(end for end in _ENDS_OF_WORDS if end not in added and _ends_words(tokenizer, end))
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


def _ends_words(tokenizer: Tokenizer, end: str) -> bool:
    """Whether a tokenizer begins anew at a character that follows a letter, as those of this family do."""
    pre_tokenizer = tokenizer.pre_tokenizer
    if pre_tokenizer is None:
        return False
    for letter, after in itertools.product(_SOME_LETTERS, ("", "a", " ", end, "1")):
        text = letter + end + after
        starts = [start for _, (start, _) in pre_tokenizer.pre_tokenize_str(text)]
        whole, parts = (
            tokenizer.encode_batch_fast(texts, add_special_tokens=False) for texts in ([text], [letter, text[1:]])
        )
        if 1 not in starts or whole[0].ids != parts[0].ids + parts[1].ids:
            return False
    return True
