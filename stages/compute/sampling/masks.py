"""Tokens that may not come next in one session: found on the host, in what the session has said so far.

min_tokens      tokens that would end an output which is still too short
bad words       the last token of a sequence, where the output ends with the others
n-grams         tokens that have followed the last n - 1 tokens before, prompt included
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from broker_pipeline.messages.sampling import SamplingSettings

_Sequence = tuple[int, ...]


class TokenMask:
    """What a session's settings rule out, step by step."""

    def __init__(self, settings: SamplingSettings, tokens: Sequence[int] = (), num_prompt_tokens: int = 0) -> None:
        """Begin with the session's `tokens`, prompt first; settings that need no history do without."""
        self._settings = settings
        self._num_prompt_tokens = num_prompt_tokens
        self._tokens: list[int] = []
        self._last_of_words: defaultdict[_Sequence, list[int]] = defaultdict(list)
        for word in settings.bad_word_ids:
            self._last_of_words[word[:-1]].append(word[-1])
        self._word_sizes = {len(others) for others in self._last_of_words}
        self._followers: defaultdict[_Sequence, set[int]] = defaultdict(set)
        for token_id in tokens:
            self.record(token_id)

    @property
    def is_needed(self) -> bool:
        """Whether anything is ever ruled out."""
        settings = self._settings
        return bool(settings.min_tokens or settings.bad_word_ids or settings.no_repeat_ngram_size)

    def record(self, token_id: int) -> None:
        """Add the session's next token."""
        size = self._settings.no_repeat_ngram_size - 1
        if 0 <= size <= len(self._tokens):
            self._followers[self._last(size)].add(token_id)
        self._tokens.append(token_id)

    def ids(self, position: int) -> set[int]:
        """Return the tokens that the session may not have at index `position`."""
        num_generated = position - self._num_prompt_tokens
        masked = set(self._settings.end_token_ids if num_generated < self._settings.min_tokens else ())
        for size in self._word_sizes:
            if size <= num_generated:
                masked.update(self._last_of_words.get(self._last(size), ()))
        if self._followers:
            masked |= self._followers.get(self._last(self._settings.no_repeat_ngram_size - 1), set())
        return masked

    def _last(self, size: int) -> _Sequence:
        return tuple(self._tokens[len(self._tokens) - size :])
