"""Decides what a request for a response asks for. Pure: what it goes on with has been read before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import (
    ImagePart,
    JobRecord,
    JobSpec,
    MediaRef,
    ResponseOrigin,
    TextPart,
    VideoFilePart,
    VideoPart,
    VisualPart,
)
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.structured_outputs import StructuredOutputs
from broker_pipeline.messages.template_options import TemplateOptions, ToolCall
from gateway.api.openai.answer_form import Choice, call_form, only_form, schema_form
from gateway.api.openai.chat.completion import read_calls
from gateway.api.openai.chat.messages import Conversation
from gateway.api.openai.chat.request import Message
from gateway.api.openai.responses.items import ItemReader
from gateway.api.openai.responses.request import AllowedFunctions, ChosenFunction, ResponseRequest, echoed
from gateway.api.openai.sampling import priority_of, refuse_unsupported, sampling_of, template_variables
from gateway.api.openai.served_model import check_model
from gateway.api.openai.tools import allowed, check_names, shown_to_template
from gateway.intake.job_draft import (
    DraftMessage,
    DraftPart,
    ImagePlace,
    JobDraft,
    Stored,
    VideoFilePlace,
    VideoPlace,
    check_media,
)
from gateway.intake.job_limits import check_prompt, check_sampling
from gateway.intake.validation import decode_json
from gateway.settings import Limits

LOGPROBS = "message.output_text.logprobs"
PREVIOUS = "previous_response_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseDraft(JobDraft):
    """A checked request for a response: the job that it is, and how it is answered."""

    stream: bool
    background: bool
    store: bool


def read_request(body: bytes) -> ResponseRequest:
    """Read the body of a request for a response; raises `InvalidRequestError` naming the field."""
    request = decode_json(body, ResponseRequest)
    refuse_unsupported(body)
    _check_background(request)
    return request


def parse(request: ResponseRequest, limits: Limits, previous: tuple[JobSpec, JobRecord] | None) -> ResponseDraft:
    """Check a request that goes on with the `previous` job.

    Raises `InvalidRequestError`, `ModelNotFoundError` or `PromptTooLongError`, naming the field.
    """
    check_model(request.model, limits)
    conversation = Conversation(limits)
    if request.instructions is not None:
        conversation.add(Message(role="system", content=request.instructions), "instructions", content="instructions")
    if previous is not None:
        _carry_over(conversation, *previous)
    if isinstance(request.input, str):
        conversation.add(Message(role="user", content=request.input), "input", content="input")
    else:
        ItemReader(conversation).read(request.input)
    check_media(conversation.messages, conversation.sources, limits)
    choice = _choice(request)
    draft = ResponseDraft(
        messages=tuple(conversation.messages),
        sources=tuple(conversation.sources),
        sampling=_sampling(request, choice),
        metadata=request.metadata or {},
        sent_as=conversation.sent_as | {"sampling.max_tokens": "max_output_tokens", "messages": "input"},
        template=_template(request, choice),
        priority=priority_of(request),
        response=ResponseOrigin(
            previous=previous[0].job_id if previous else None,
            has_instructions=request.instructions is not None,
            echoed=echoed(request),
        ),
        stream=bool(request.stream),
        background=bool(request.background),
        store=request.store is not False,
    )
    check_sampling(draft, limits, "")
    check_prompt(draft, limits)
    return draft


def _check_background(request: ResponseRequest) -> None:
    if request.background and request.stream:
        raise InvalidRequestError("not with `stream`", field="background")
    if request.background and request.store is False:
        raise InvalidRequestError("without `store` nobody could ask for it", field="background")


def _sampling(request: ResponseRequest, choice: Choice) -> SamplingParams:
    has_logprobs = LOGPROBS in (request.include or ()) or request.top_logprobs is not None
    num_logprobs = (request.top_logprobs or 0) if has_logprobs else None
    return sampling_of(request, _form(request, choice), max_tokens=request.max_output_tokens, num_logprobs=num_logprobs)


def _form(request: ResponseRequest, choice: Choice) -> StructuredOutputs | None:
    kind = request.text.format if request.text else None
    return only_form(
        text__format=schema_form(kind.type, kind.schema, "text.format.schema") if kind else None,
        structured_outputs=request.structured_outputs,
        tool_choice=call_form(*choice),
    )


def _choice(request: ResponseRequest) -> Choice:
    """Return what is to be called, and the functions that the model is told of."""
    choice, functions = request.tool_choice, request.tools or ()
    if isinstance(choice, AllowedFunctions):
        return choice.mode, allowed(functions, [tool.name for tool in choice.tools], "tool_choice.tools")
    return (choice.name if isinstance(choice, ChosenFunction) else choice), functions


def _template(request: ResponseRequest, choice: Choice) -> TemplateOptions:
    called, functions = choice
    check_names(request.tools or (), "tools")
    return TemplateOptions(
        tools=() if called == "none" else tuple(map(shown_to_template, functions)),
        variables=template_variables(request, request.reasoning.effort if request.reasoning else None),
    )


def _carry_over(conversation: Conversation, spec: JobSpec, record: JobRecord) -> None:
    """Begin with what was said before: all turns but the instructions, which were for that response alone."""
    has_instructions = spec.response is not None and spec.response.has_instructions
    for message in spec.messages[has_instructions:]:
        parts = tuple(_place(part, conversation) for part in message.content)
        conversation.messages.append(
            DraftMessage(message.role, parts, reasoning=message.reasoning, tool_calls=message.tool_calls)
        )
    if answer := _answer(spec, record):
        conversation.messages.append(answer)


def _answer(spec: JobSpec, record: JobRecord) -> DraftMessage | None:
    result = record.result
    if result is None:
        return None
    text, found = read_calls(result.text) if spec.template.tools else (result.text, [])
    calls = tuple(ToolCall(name=call.name, arguments=msgspec.json.decode(call.arguments)) for call in found)
    parts = (TextPart(text=text),) if text or not calls else ()
    return DraftMessage("assistant", parts, reasoning=result.reasoning, tool_calls=calls)


def _place(part: TextPart | VisualPart, conversation: Conversation) -> DraftPart:
    sources = conversation.sources
    start = len(sources)
    sources.extend(_stored(part))
    if isinstance(part, ImagePart):
        return ImagePlace(start, part.bounds)
    if isinstance(part, VideoPart):
        return VideoPlace(start, len(sources), part.fps, part.times, part.bounds)
    if isinstance(part, VideoFilePart):
        return VideoFilePlace(start, part.fps, part.max_frames, part.bounds)
    return part


def _stored(part: TextPart | VisualPart) -> Iterator[Stored]:
    refs: tuple[MediaRef, ...] = ()
    if isinstance(part, VideoPart):
        refs = part.frames
    elif isinstance(part, ImagePart | VideoFilePart):
        refs = (part.media,)
    return (Stored(PREVIOUS, ref, is_video=isinstance(part, VideoFilePart)) for ref in refs)
