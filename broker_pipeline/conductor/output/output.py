"""When a session has said enough: an end-of-sequence token, its limit, or a stop string.

Text that may be the beginning of a stop string is held back until the next tokens decide; what a client was shown is
never taken back.

    stop "###"     tokens   "a"   " #"    "#"    "b"       "##"   "#c"
                   shown    "a"   " "     ""     "##b"     ""     ""  and stop: "###" is complete, "c" is dropped
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from broker_pipeline.conductor.output.detokenizer import Detokenizer, Vocabulary
from broker_pipeline.messages.jobs import FinishReason, TokenEntry
from broker_pipeline.messages.sampling import SampledToken


class StopStrings:
    """Looks for any of several strings in a text that comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Return what may be shown now, and whether a stop string is complete; then what follows it is dropped."""
        if not self._stops:
            return text, False
        self._held += text
        found = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        cut = len(self._held) - self._num_undecided()
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def finish(self) -> str:
        """Return what was held back: no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _num_undecided(self) -> int:
        """Length of the longest end of the text that is a beginning of a stop string."""
        return max((_overlap(self._held, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class Output:
    """What one session has said so far, and whether that is all.

    Fed with the same tokens it always gives the same entries, so that a resumed session goes on where it was.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, eos_token_ids: Collection[int], max_tokens: int, stop: Sequence[str] = ()
    ) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._stop_strings = StopStrings(stop)
        self._eos_token_ids = frozenset(eos_token_ids)
        self.max_tokens = max_tokens
        self.token_ids: list[int] = []
        self._texts: list[str] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """All text shown."""
        return "".join(self._texts)

    def add(self, token: SampledToken) -> TokenEntry:
        """Take one more token and return its entry; look at `finish_reason` afterwards."""
        text = self._add(token.token_id)
        return TokenEntry(token_id=token.token_id, text=text, logprob=token.logprob, top=token.top)

    def replay(self, token_ids: Sequence[int]) -> None:
        """Take tokens that an earlier attempt has committed, at most up to where the session ends."""
        for token_id in token_ids:
            if self.finish_reason is not None:
                return
            self._add(token_id)

    def cut_short(self) -> str:
        """Show what is held back, since no more tokens come, and return all text."""
        self._texts.append(self._rest())
        return self.text

    def _add(self, token_id: int) -> str:
        assert self.finish_reason is None, "the session has ended"
        self.token_ids.append(token_id)
        text, is_stopped = self._stop_strings.feed(self._detokenizer.feed(token_id))
        if is_stopped or token_id in self._eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None and not is_stopped:
            text += self._rest()
        self._texts.append(text)
        return text

    def _rest(self) -> str:
        """Return what is held back; bytes still pending may complete a stop string after all."""
        shown, is_stopped = self._stop_strings.feed(self._detokenizer.finish())
        if is_stopped:
            self.finish_reason = "stop"
            return shown
        return shown + self._stop_strings.finish()
