"""A finished job as a chat completion. Pure: no HTTP, so that batches answer by the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import UNSET

from broker_pipeline.messages.jobs import Choice, JobRecord, JobResult, JobSpec, TokenEntry, Usage
from broker_pipeline.messages.sampling import TokenLogprob
from gateway.api.openai.chat.answers import (
    AnswerMessage,
    CalledFunctionAnswer,
    ChatChoice,
    ChatCompletion,
    ChatUsage,
    ChoiceLogprobs,
    CompletionDetails,
    PromptDetails,
    TokenLogprobs,
    ToolCallAnswer,
    TopLogprob,
)
from gateway.api.openai.tool_calls import FoundCall, ToolCallReader


def completion_id(job_id: str) -> str:
    """Return what a job is called as a chat completion."""
    return f"chatcmpl-{job_id}"


def call_id(job_id: str, choice: int, number: int) -> str:
    """Return the name of a call: the same however often the answer is made."""
    return f"call_{job_id}_{choice}_{number}"


def completion(spec: JobSpec, record: JobRecord, tokens: Sequence[TokenEntry] = ()) -> ChatCompletion:
    """Return the completion of a job that has a result; `tokens` are its committed ones, for log-probabilities."""
    result = record.result
    assert result is not None, "the job has no result"
    return ChatCompletion(
        id=completion_id(spec.job_id),
        created=int(record.created_at),
        model=result.model or "",
        choices=tuple(_choice(spec, index, choice, tokens) for index, choice in enumerate(outputs_of(result))),
        usage=chat_usage(result.usage),
    )


def outputs_of(result: JobResult) -> tuple[Choice, ...]:
    """Return all outputs of a job, also of one that asked for one."""
    usage = result.usage
    only = Choice(
        text=result.text,
        reasoning=result.reasoning,
        finish_reason=result.finish_reason,
        stop_reason=result.stop_reason,
        num_output_tokens=usage.num_output_tokens,
        num_reasoning_tokens=usage.num_reasoning_tokens,
    )
    return result.choices or (only,)


def finish_reason(choice: Choice, *, has_calls: bool) -> str:
    """Return why an output ended, as clients know it."""
    return "tool_calls" if has_calls and choice.finish_reason == "stop" else choice.finish_reason


def read_calls(text: str) -> tuple[str, list[FoundCall]]:
    """Divide a whole output into its text and the calls in it."""
    reader = ToolCallReader()
    told = reader.feed(text) + reader.finish()
    return "".join(each for each in told if isinstance(each, str)), [
        each for each in told if isinstance(each, FoundCall)
    ]


def chat_usage(usage: Usage) -> ChatUsage:
    """Return token counts as clients know them."""
    return ChatUsage(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_output_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
        prompt_tokens_details=PromptDetails(image_tokens=usage.num_visual_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens=usage.num_reasoning_tokens),
    )


def choice_logprobs(tokens: Iterable[TokenEntry]) -> ChoiceLogprobs:
    """Return the log-probabilities of tokens of one output."""
    return ChoiceLogprobs(content=tuple(_token_logprobs(entry) for entry in tokens))


def _choice(spec: JobSpec, index: int, choice: Choice, tokens: Sequence[TokenEntry]) -> ChatChoice:
    text, calls = read_calls(choice.text) if spec.template.tools else (choice.text, [])
    message = AnswerMessage(
        content=text or (None if calls or choice.reasoning else ""),
        reasoning=choice.reasoning or UNSET,
        reasoning_content=choice.reasoning or UNSET,
        tool_calls=tuple(_call(spec.job_id, index, *numbered) for numbered in enumerate(calls)) or UNSET,
    )
    logprobs = None
    if spec.sampling.logprobs is not None:
        logprobs = choice_logprobs(entry for entry in tokens if entry.choice == index)
    return ChatChoice(
        index=index,
        message=message,
        logprobs=logprobs,
        finish_reason=finish_reason(choice, has_calls=bool(calls)),
        stop_reason=choice.stop_reason,
    )


def _call(job_id: str, choice: int, number: int, found: FoundCall) -> ToolCallAnswer:
    function = CalledFunctionAnswer(name=found.name, arguments=found.arguments)
    return ToolCallAnswer(id=call_id(job_id, choice, number), function=function)


def _token_logprobs(entry: TokenEntry) -> TokenLogprobs:
    return TokenLogprobs(
        token=_text(entry.spelling),
        logprob=entry.logprob if entry.logprob is not None else -9999.0,
        bytes=tuple(entry.spelling),
        top_logprobs=tuple(map(_top, entry.top)),
    )


def _top(top: TokenLogprob) -> TopLogprob:
    return TopLogprob(token=_text(top.spelling), logprob=top.logprob, bytes=tuple(top.spelling))


def _text(spelling: bytes) -> str:
    return spelling.decode(errors="replace")
