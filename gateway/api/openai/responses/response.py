"""A job as a response, at any moment of its life. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker_pipeline.messages.jobs import JobRecord, JobResult, JobSpec, ResponseOrigin, TextPart, TokenEntry, Usage
from gateway.api.openai.chat.completion import choice_logprobs
from gateway.api.openai.responses.answers import (
    CallItem,
    IncompleteDetails,
    InputDetails,
    Item,
    MessageItem,
    OutputDetails,
    ReasoningAnswer,
    ReasoningItem,
    Response,
    ResponseError,
    ResponseUsage,
    TextAnswer,
)
from gateway.api.openai.tool_calls import FoundCall, ToolCallReader

_STATUSES = {"queued": "queued", "running": "in_progress", "failed": "failed", "cancelled": "cancelled"}
_UNFINISHED = {"length": "max_output_tokens", "repetition": "content_filter"}
_CLIENTS_OWN = ("invalid_request", "prompt_too_long", "nothing_left")


def response_id(job_id: str) -> str:
    """Return what a job is called as a response."""
    return f"resp_{job_id}"


def item_id(kind: str, job_id: str, number: int) -> str:
    """Return the name of an item: the same however often the answer is made."""
    return f"{kind}_{job_id}_{number}"


def response(spec: JobSpec, record: JobRecord, model: str, tokens: Sequence[TokenEntry] = ()) -> Response:
    """Return a job as a response; `model` is its name until a result says so, `tokens` are for log-probabilities."""
    result, sampling = record.result, spec.sampling
    obeyed = (result and result.sampling) or sampling
    reason = _UNFINISHED.get(result.finish_reason) if result else None
    origin = spec.response or ResponseOrigin()
    echoed = {name: value for name, value in origin.echoed.items() if name in Response.__struct_fields__}
    status = _STATUSES.get(record.status) or ("incomplete" if reason else "completed")
    return Response(
        **echoed | {"text": {"format": {"type": "text"}} | echoed.get("text", {})},
        id=response_id(spec.job_id),
        created_at=int(record.created_at),
        status=status,  # type: ignore[arg-type]
        completed_at=int(record.finished_at or 0) if status == "completed" else None,
        error=_error(record),
        incomplete_details=IncompleteDetails(reason=reason) if reason else None,
        instructions=_instructions(spec),
        max_output_tokens=sampling.max_tokens,
        metadata=record.metadata,
        model=(result and result.model) or model,
        output=items_of(spec, result, tokens) if result else (),
        previous_response_id=response_id(origin.previous) if origin.previous else None,
        temperature=obeyed.temperature,
        top_p=obeyed.top_p,
        usage=_usage(result.usage) if result else None,
    )


def items_of(spec: JobSpec, result: JobResult, tokens: Sequence[TokenEntry]) -> tuple[Item, ...]:
    """Return what the model said, in the order in which it said it."""
    job_id, items = spec.job_id, list[Item]()
    if result.reasoning:
        text = ReasoningAnswer(text=result.reasoning)
        items.append(ReasoningItem(id=item_id("rs", job_id, 0), content=(text,)))
    reader = ToolCallReader()
    told = reader.feed(result.text) + reader.finish() if spec.template.tools else [result.text] if result.text else []
    logprobs = choice_logprobs(tokens).content if spec.sampling.logprobs is not None else ()
    for each in told:
        number, last = len(items), items[-1] if items else None
        if isinstance(each, FoundCall):
            items.append(call_item(job_id, number, each))
        elif isinstance(last, MessageItem):  # two pieces of one text
            items[-1] = message_item(job_id, number - 1, last.content[0].text + each, logprobs)
        else:
            items.append(message_item(job_id, number, each, logprobs))
    if items and result.finish_reason != "stop" and not isinstance(items[-1], CallItem):  # a call is whole, or text
        items[-1] = msgspec.structs.replace(items[-1], status="incomplete")
    return tuple(items)


def message_item(job_id: str, number: int, text: str, logprobs: Any = ()) -> MessageItem:
    """Return a text as an item."""
    return MessageItem(id=item_id("msg", job_id, number), content=(TextAnswer(text=text, logprobs=logprobs),))


def call_item(job_id: str, number: int, found: FoundCall) -> CallItem:
    """Return a call as an item."""
    return CallItem(
        id=item_id("fc", job_id, number),
        call_id=item_id("call", job_id, number),
        name=found.name,
        arguments=found.arguments,
    )


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.num_prompt_tokens,
        input_tokens_details=InputDetails(image_tokens=usage.num_visual_tokens),
        output_tokens=usage.num_output_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=usage.num_reasoning_tokens),
        total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
    )


def _error(record: JobRecord) -> ResponseError | None:
    if record.error is None:
        return None
    code = "invalid_prompt" if record.error.code in _CLIENTS_OWN else "server_error"
    return ResponseError(code=code, message=record.error.message)


def _instructions(spec: JobSpec) -> str | None:
    if spec.response is None or not spec.response.has_instructions:
        return None
    return "".join(part.text for part in spec.messages[0].content if isinstance(part, TextPart))
