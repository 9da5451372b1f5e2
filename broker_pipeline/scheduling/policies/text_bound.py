"""How few tokens a text can have, known from its bytes alone: what is far too long is refused before it is tokenised.

A token stands for so many bytes at most, so that B bytes are at least B / (the longest token's bytes) tokens. Those are
bytes after normalisation, which may shorten a text that is not ASCII.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel

from broker_pipeline.errors import PromptTooLongError

_NFC_SHRINKS = 4
"""Most bytes that NFC turns into one. The worst has 3.5: U+1FBE U+0308 U+0301 has 7, U+0390, which it becomes, 2."""


def longest_token_bytes(tokenizer: Tokenizer) -> int:
    """Return the most bytes of normalised text that one token of a byte-level tokenizer stands for.

    0 where nothing bounds them: by another normalisation, by added tokens that swallow the spaces next to them, or by
    bytes that have no token and are left out.
    """
    added = tokenizer.get_added_tokens_decoder()
    words = [token for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items() if token_id not in added]
    is_bounded = (
        isinstance(tokenizer.normalizer, NFC | None)
        and not any(token.lstrip or token.rstrip for token in added.values())
        and set(ByteLevel.alphabet()).issubset(words)
    )
    lengths = (*map(len, words), *(len(token.content.encode()) for token in added.values()))
    return max(lengths) if is_bounded else 0


def fewest_tokens(texts: Iterable[str], longest_token_bytes: int) -> int:
    """Return a number of tokens that texts, in one prompt, cannot be shorter than; 0 where nothing is known.

    Lone surrogates count as well: prompts that are being made have them in place of ASCII characters.
    """
    if not longest_token_bytes:
        return 0
    return sum(map(_fewest_bytes, texts)) // longest_token_bytes


def too_long(max_tokens: int, num_tokens: int | None = None, num_visual_tokens: int = 0) -> PromptTooLongError:
    """Say how long a prompt is where that is known: one that is far too long is not read to its end."""
    found = f"more than {max_tokens} tokens" if num_tokens is None else f"{num_tokens} tokens"
    visual = f", {num_visual_tokens} of them visual" if num_visual_tokens else ""
    return PromptTooLongError(
        f"the prompt has {found}{visual}; at most {max_tokens} fit with the output that is asked for", field="messages"
    )


def _fewest_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) // _NFC_SHRINKS
