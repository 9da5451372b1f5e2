"""A job's tokens as chunks of a streamed chat completion. Pure.

role ──► deltas of reasoning, text and calls ──► a finish reason for each output ──► usage, where it was asked for
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from msgspec import UNSET, UnsetType

from broker_pipeline.messages.jobs import JobResult, TokenEntry
from gateway.api.openai.chat.answers import (
    CalledFunctionAnswer,
    ChatChunk,
    ChatUsage,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    ToolCallDelta,
)
from gateway.api.openai.chat.completion import (
    call_id,
    chat_usage,
    choice_logprobs,
    completion_id,
    finish_reason,
    outputs_of,
)
from gateway.api.openai.chat.parse import ChatDraft
from gateway.api.openai.tool_calls import FoundCall, ToolCallReader


class CompletionChunks:
    """The chunks of one job."""

    def __init__(self, job_id: str, created: int, draft: ChatDraft) -> None:
        self._job_id = job_id
        self._created = created
        self._draft = draft
        self._has_logprobs = draft.sampling.logprobs is not None
        num_outputs = draft.sampling.num_outputs
        self._readers = [ToolCallReader() for _ in range(num_outputs)] if draft.template.tools else []
        self._num_outputs = num_outputs
        self._num_prompt_tokens = self._num_tokens = 0

    def begin(self, tokens: Sequence[TokenEntry]) -> Iterator[ChatChunk]:
        """Yield what comes before any token: who speaks. The first tokens say how long the prompt was."""
        self._note_prompt(tokens)
        for index in range(self._num_outputs):
            yield self._chunk(index, Delta(role="assistant", content=""))

    def take(self, tokens: Sequence[TokenEntry]) -> Iterator[ChatChunk]:
        """Yield what some more tokens add."""
        self._note_prompt(tokens)
        self._num_tokens += len(tokens)
        for index, entries in groupby(tokens, key=lambda entry: entry.choice):
            yield from self._of_output(index, list(entries))

    def end(self, result: JobResult) -> Iterator[ChatChunk]:
        """Yield what comes after the last token."""
        for index, choice in enumerate(outputs_of(result)):
            reader = self._readers[index] if self._readers else None
            for delta in self._deltas_of(index, reader.finish() if reader else []):
                yield self._chunk(index, delta)
            reason = finish_reason(choice, has_calls=bool(reader and reader.num_calls))
            last = ChunkChoice(index=index, delta=Delta(), finish_reason=reason, stop_reason=choice.stop_reason)
            yield self._of_all((last,), self._usage_so_far())
        if self._draft.stream_options.include_usage:
            yield self._of_all((), chat_usage(result.usage))

    def _note_prompt(self, tokens: Sequence[TokenEntry]) -> None:
        self._num_prompt_tokens = max([self._num_prompt_tokens, *(entry.num_prompt_tokens or 0 for entry in tokens)])

    def _of_output(self, index: int, entries: list[TokenEntry]) -> Iterator[ChatChunk]:
        deltas = []
        if reasoning := "".join(entry.reasoning for entry in entries):
            deltas.append(Delta(reasoning=reasoning, reasoning_content=reasoning))
        text = "".join(entry.text for entry in entries)
        deltas += self._deltas_of(index, self._readers[index].feed(text) if self._readers else [text])
        logprobs = choice_logprobs(entries) if self._has_logprobs else None
        if logprobs and not deltas:
            deltas = [Delta(content="")]
        for number, delta in enumerate(deltas):
            yield self._chunk(index, delta, logprobs=logprobs if number == 0 else None)

    def _deltas_of(self, index: int, told: Sequence[str | FoundCall]) -> list[Delta]:
        deltas, calls = [], [each for each in told if isinstance(each, FoundCall)]
        number = self._readers[index].num_calls - len(calls) if self._readers else 0
        for each in told:
            if isinstance(each, FoundCall):
                function = CalledFunctionAnswer(name=each.name, arguments=each.arguments)
                call = ToolCallDelta(index=number, id=call_id(self._job_id, index, number), function=function)
                deltas.append(Delta(tool_calls=(call,)))
                number += 1
            elif each:
                deltas.append(Delta(content=each))
        return deltas

    def _chunk(self, index: int, delta: Delta, *, logprobs: ChoiceLogprobs | None = None) -> ChatChunk:
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs)
        return self._of_all((choice,), self._usage_so_far())

    def _usage_so_far(self) -> ChatUsage | UnsetType | None:
        options, num_prompt, num_tokens = self._draft.stream_options, self._num_prompt_tokens, self._num_tokens
        if not options.include_usage:
            return UNSET
        if not options.continuous_usage_stats:
            return None
        return ChatUsage(prompt_tokens=num_prompt, completion_tokens=num_tokens, total_tokens=num_prompt + num_tokens)

    def _of_all(self, choices: tuple[ChunkChoice, ...], usage: ChatUsage | UnsetType | None) -> ChatChunk:
        return ChatChunk(
            id=completion_id(self._job_id),
            created=self._created,
            model=self._draft.model,
            choices=choices,
            usage=usage,
        )
