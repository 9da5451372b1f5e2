"""Token ids become text, one at a time: each token's share is what became visible with it.

The family's tokenizers work on bytes, so a token is some bytes, and text is what a UTF-8 decoder has made of all bytes
so far. The tokenizers library has a stream of its own for this, which decodes everything pending again at every step
(a run of broken bytes costs its square, and shows nothing meanwhile); here a step costs the same whatever came before.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from broker_pipeline.artifact_manifest import read_artifact_file
from broker_pipeline.errors import ArtifactCorruptError
from broker_pipeline.scheduling.policies.text_bound import longest_token_bytes

TOKENIZER_NAME = "tokenizer.json"

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Vocabulary:
    """The bytes that each token of a byte-level tokenizer stands for; none for special and for unknown tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {token_id: b"" for token_id, token in added.items() if token.special}
        self.longest_token_bytes = longest_token_bytes(tokenizer)
        """Most bytes of text that a token stands for; 0 where nothing bounds them."""
        self.known_texts: dict[int, str] = {}
        """Texts of tokens that were asked for and whose bytes are whole characters."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Load an artifact's tokenizer.

        Raises:
            ArtifactMissingError: the artifact has none.
            ArtifactCorruptError: it cannot be read, or does not work on bytes.
        """
        path = directory / TOKENIZER_NAME
        encoded = read_artifact_file(path)
        try:
            tokenizer = Tokenizer.from_buffer(encoded)
        except ValueError as error:
            raise ArtifactCorruptError(f"{path} is not a tokenizer: {error}", field=TOKENIZER_NAME) from error
        if not isinstance(tokenizer.decoder, ByteLevel):
            raise ArtifactCorruptError(
                f"{path} decodes by {type(tokenizer.decoder).__name__}; tokenizers of this family do so by bytes",
                field=TOKENIZER_NAME,
            )
        return cls(tokenizer)

    def __getitem__(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = _bytes_of(self._tokenizer.id_to_token(token_id) or "")
        return known

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text by itself."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def id_of(self, token: str) -> int | None:
        """Return the id of a token that is written like this, None where there is none."""
        return self._tokenizer.token_to_id(token)

    def spelling(self, token_id: int) -> bytes:
        """Return what a token is written as; a special one, which has no text, as its name."""
        return self[token_id] or (self._tokenizer.id_to_token(token_id) or "").encode()

    def text(self, token_id: int) -> str | None:
        """Return a token's text where its bytes are whole characters, None where they are not."""
        text = self.known_texts.get(token_id)
        if text is None and (text := _whole_text(self[token_id])) is not None:
            self.known_texts[token_id] = text
        return text


class Detokenizer:
    """Decodes one session's output; special tokens have no text.

    Bytes of a character that is not complete wait for the rest. `feed` of every token plus `finish` is the tokenizer's
    `decode` of all of them.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known_texts = vocabulary.known_texts
        self._decoder = _new_decoder("replace")
        self._has_pending = False

    def feed(self, token_id: int) -> str:
        """Return the text that becomes visible with one more token."""
        if not self._has_pending:
            text = self._known_texts.get(token_id)
            if text is not None or (text := self._vocabulary.text(token_id)) is not None:
                return text  # most tokens: nothing to decode
        text = self._decoder.decode(self._vocabulary[token_id])
        self._has_pending = bool(self._decoder.getstate()[0])
        return text

    def finish(self) -> str:
        """Return a replacement character for bytes that nothing completes any more, if there are any."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._has_pending = False
        return text


def _whole_text(encoded: bytes) -> str | None:
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return None


def _bytes_of(token: str) -> bytes:
    """Return a token's bytes; an added token is written as its text, whatever characters that has."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character in which byte-level vocabularies are written.

    Printable bytes stand for themselves, the others for characters from U+0100 on, as in GPT-2's encoder.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
