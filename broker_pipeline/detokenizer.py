"""Token ids become text, one at a time: each token's share is what became visible with it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from broker_pipeline.artifact_manifest import read_artifact_file
from broker_pipeline.errors import ArtifactCorruptError

TOKENIZER_NAME = "tokenizer.json"

_MAX_PENDING = 32  # tokens; a character needs at most 4, so that most of those are broken bytes
_NUM_UNDECIDED = 3  # tokens at the end that the next one may still complete to a character


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load an artifact's tokenizer.

    Raises:
        ArtifactMissingError: the artifact has none.
        ArtifactCorruptError: it cannot be read.
    """
    path = directory / TOKENIZER_NAME
    try:
        return Tokenizer.from_buffer(read_artifact_file(path))
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactCorruptError(f"{path} is not a tokenizer: {error}", field=TOKENIZER_NAME) from error


class Detokenizer:
    """Decodes one session's output; special tokens have no text.

    Bytes of a character that is not complete wait for the rest. `feed` of every token plus `finish` is the tokenizer's
    `decode` of all of them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        """Return the text that becomes visible with one more token."""
        self._pending.append(token_id)
        text = self._stream.step(self._tokenizer, token_id)
        if text is not None:
            self._pending.clear()
            return str(text)
        # Each step decodes what is pending again: without an end to that, a run of broken bytes costs its square.
        return self._give_up_on_most() if len(self._pending) >= _MAX_PENDING else ""

    def finish(self) -> str:
        """Return the text of what is pending, incomplete characters as replacement characters."""
        text = self._decode(self._pending)
        self._pending = []
        self._stream = DecodeStream(skip_special_tokens=True)
        return text

    def _give_up_on_most(self) -> str:
        """Return the text of the front of what is pending, up to where no character is cut; begin again behind it."""
        pending, whole = self._pending, self._decode(self._pending)
        places = range(len(pending) - _NUM_UNDECIDED, 0, -1)
        cut = next((at for at in places if self._decode(pending[:at]) + self._decode(pending[at:]) == whole), places[0])
        self._pending = pending[:cut]
        return self.finish() + "".join(self.feed(token_id) for token_id in pending[cut:])

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
