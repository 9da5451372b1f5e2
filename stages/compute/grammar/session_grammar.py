"""How far one session's answer has come in its grammar, and which tokens may follow."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from llguidance import LLMatcher

from broker_pipeline.messages.structured_outputs import GrammarSettings
from stages.compute.grammar.grammars import Grammars, require_sound
from stages.compute.grammar.token_bits import TokenBits, num_bytes_of


class SessionGrammar:
    """One session's place in a grammar; a grammar thread takes token after token, and works out what may follow."""

    def __init__(self, grammars: Grammars, settings: GrammarSettings, said: Sequence[int] = ()) -> None:
        """Begin behind the tokens that the session has `said` so far, prompt not included."""
        self._grammars = grammars
        self._begins_after = settings.begins_after
        answer = _answer(said, settings.begins_after)
        self._is_answer = answer is not None
        compiled = grammars.compiled(settings.source)  # queued before what waits for it
        self._matcher: LLMatcher | None = None  # of the grammar threads, each of which finds what the last one left
        self._next: Future[TokenBits | None] = grammars.submit(self._begin, compiled, answer)

    def allowed(self) -> TokenBits | None:
        """Wait for the tokens that may come next; None before the answer. The array is not to be changed.

        Where the answer is complete, these are the ends of sequence.

        Raises:
            GrammarError: the grammar cannot be compiled, or has met a limit.
        """
        return self._next.result()

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Return the ends of sequence, none of which comes before the answer."""
        return self._grammars.end_token_ids

    def record(self, token_id: int) -> None:
        """Add the token that was sampled from what `allowed` has returned."""
        if not self._is_answer:
            self._is_answer = token_id == self._begins_after
            if self._is_answer:
                self._next = self._grammars.submit(self._go_on, (), self._next)
        elif token_id not in self.end_token_ids:  # after one there is nothing to come
            self._next = self._grammars.submit(self._go_on, (token_id,), self._next)

    def _begin(self, compiled: Future[LLMatcher], answer: Sequence[int] | None) -> TokenBits | None:
        self._matcher = compiled.result().deep_copy()
        return None if answer is None else self._go_on(answer)

    def _go_on(self, token_ids: Sequence[int], before: Future[TokenBits | None] | None = None) -> TokenBits:
        if before is not None:
            before.result()  # was queued before this: one thread at a time has the matcher
        matcher, vocab_size = self._matcher, self._grammars.vocab_size
        assert matcher is not None, "it is there once the beginning is done"
        matcher.consume_tokens(list(token_ids))
        bits = np.zeros(num_bytes_of(vocab_size), dtype=np.uint8)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, -(-vocab_size // 32) * 4)
        require_sound(matcher)
        return bits


def _answer(said: Sequence[int], begins_after: int | None) -> tuple[int, ...] | None:
    """Return the answer's part of an output; None where it has not begun."""
    if begins_after is None:
        return tuple(said)
    return tuple(said[said.index(begins_after) + 1 :]) if begins_after in said else None
