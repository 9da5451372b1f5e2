"""What a session has said so far: tokens become text, until something ends it.

Text that may be the beginning of a stop string is held back until the next tokens decide; what a client was shown is
never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec

from broker_pipeline.conductor.output.detokenizer import Detokenizer, Vocabulary
from broker_pipeline.conductor.output.reasoning import ReasoningSplit
from broker_pipeline.conductor.output.repetition_watch import RepetitionWatch
from broker_pipeline.conductor.output.stop_rule import StopRule
from broker_pipeline.conductor.output.stop_strings import StopStrings
from broker_pipeline.errors import GarbledStateError
from broker_pipeline.messages.jobs import Choice, FinishReason, TokenEntry
from broker_pipeline.messages.sampling import SampledToken


class Output:
    """What one session has said so far, and whether that is all.

    Fed with the same tokens it always gives the same entries, so that a resumed session goes on where it was.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rule: StopRule,
        choice: int = 0,
        *,
        is_reasoning: bool = False,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Begin with nothing said, within reasoning where the prompt has opened that.

        `choice` is its number among the outputs of its job; the first token of the first one tells `num_prompt_tokens`.
        """
        self._num_prompt_tokens = None if choice else num_prompt_tokens
        self._choice = choice
        self._vocabulary = vocabulary
        self._detokenizer = Detokenizer(vocabulary)
        self._split = ReasoningSplit(vocabulary, is_open=is_reasoning)
        self._stop_strings = StopStrings(rule.stop)
        self._repetition = RepetitionWatch(rule.repetition) if rule.repetition else None
        self._rule = rule
        self._is_plain = not rule.stop and rule.repetition is None
        """Whether only its length and single tokens can end it."""
        self.token_ids: list[int] = []
        self._shown: list[tuple[str, str]] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """All text of the answer shown."""
        return "".join([text for _, text in self._shown])

    def add(self, token: SampledToken) -> TokenEntry:
        """Take one more token and return its entry; look at `finish_reason` afterwards."""
        token_id = token.token_id
        reasoning, text = self._add(token_id)
        if token.logprob is None and not self._choice and not reasoning and len(self.token_ids) > 1:
            return TokenEntry(token_id=token_id, text=text)  # most tokens
        entry = TokenEntry(
            token_id=token_id,
            text=text,
            reasoning=reasoning,
            choice=self._choice,
            num_prompt_tokens=self._num_prompt_tokens if len(self.token_ids) == 1 else None,
        )
        return entry if token.logprob is None else self._with_logprobs(entry, token)

    def _with_logprobs(self, entry: TokenEntry, token: SampledToken) -> TokenEntry:
        spelling = self._vocabulary.spelling
        top = tuple(msgspec.structs.replace(each, spelling=spelling(each.token_id)) for each in token.top)
        return msgspec.structs.replace(entry, logprob=token.logprob, spelling=spelling(token.token_id), top=top)

    def replay(self, token_ids: Sequence[int]) -> None:
        """Take tokens that an earlier attempt has committed, at most up to where the session ends."""
        for token_id in token_ids:
            if self.finish_reason is not None:
                return
            self._add(token_id)

    def end(self) -> Choice:
        """Return what was said in all. Where nothing has ended it, no more tokens come: what is held back is shown."""
        reason = self.finish_reason
        if reason is None:
            self._shown.append(self._rest())
        return Choice(
            text=self.text,
            reasoning="".join([reasoning for reasoning, _ in self._shown]),
            finish_reason=reason or "cancelled",
            stop_reason=self._stop_reason(),
            num_output_tokens=len(self.token_ids),
            num_reasoning_tokens=self._split.num_tokens,
        )

    def _stop_reason(self) -> str | int | None:
        """Return which stop string or token ended it, of those that were asked for."""
        if self.finish_reason != "stop" or self._stop_strings.found is not None:
            return self._stop_strings.found
        return self.token_ids[-1] if self.token_ids[-1] in self._rule.asked_token_ids else None

    def _add(self, token_id: int) -> tuple[str, str]:
        assert self.finish_reason is None, "the session has ended"
        self.token_ids.append(token_id)
        rule, num_tokens = self._rule, len(self.token_ids)
        if self._is_plain and num_tokens < rule.max_tokens and token_id not in rule.end_token_ids:
            shown = self._split.feed(token_id, self._detokenizer.feed(token_id))
            self._shown.append(shown)
            return shown
        may_stop = num_tokens > rule.min_tokens
        is_end = token_id in rule.end_token_ids
        reasoning, text = self._split.feed(token_id, "" if is_end else self._detokenizer.feed(token_id))
        is_stopped = False
        if rule.stop:
            text, is_stopped = self._stop_strings.feed(text, may_stop=may_stop)
        is_repeating = self._repetition is not None and self._repetition.feed(token_id)
        if is_end or is_stopped or is_repeating or num_tokens >= rule.max_tokens:
            self.finish_reason = rule.reason(self.token_ids, is_stopped=is_stopped, is_repeating=is_repeating)
        if self.finish_reason is not None and not is_stopped:
            more_reasoning, more = self._rest()
            reasoning, text = reasoning + more_reasoning, text + more
        self._shown.append((reasoning, text))
        return reasoning, text

    def _rest(self) -> tuple[str, str]:
        """Return what is held back; bytes still pending may complete a stop string after all."""
        may_stop = len(self.token_ids) > self._rule.min_tokens
        reasoning, text = self._split.take(self._detokenizer.finish())
        shown, is_stopped = self._stop_strings.feed(text, may_stop=may_stop)
        if is_stopped:
            self.finish_reason = "stop"
            return reasoning, shown
        return reasoning, shown + self._stop_strings.finish()


def tokens_by_choice(tokens: Sequence[TokenEntry]) -> list[list[TokenEntry]]:
    """Return the tokens of each of a job's outputs; only the last may be unfinished."""
    return [list(entries) for _, entries in groupby(tokens, key=lambda entry: entry.choice)]


def check_committed(tokens: Sequence[TokenEntry], *, vocab_size: int, num_outputs: int) -> None:
    """Raise `GarbledStateError` for tokens that this model cannot have said, or outputs that were not asked for."""
    choices = [choice for choice, _ in groupby(entry.choice for entry in tokens)]
    if choices != list(range(len(choices))) or len(choices) > num_outputs:
        raise GarbledStateError(f"the committed tokens are of outputs {choices[:10]}, and {num_outputs} were asked for")
    if (largest := max((entry.token_id for entry in tokens), default=0)) >= vocab_size:
        raise GarbledStateError(f"token {largest} was committed, and the model has {vocab_size}")


def committed_choice(tokens: Sequence[TokenEntry]) -> Choice:
    """Return an output that is cut short as it was committed; what was held back by then is not shown."""
    return Choice(
        text="".join(entry.text for entry in tokens),
        reasoning="".join(entry.reasoning for entry in tokens),
        finish_reason="cancelled",
        num_output_tokens=len(tokens),
        num_reasoning_tokens=max((number for number, entry in enumerate(tokens, 1) if entry.reasoning), default=0),
    )
