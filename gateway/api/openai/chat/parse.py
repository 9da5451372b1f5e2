"""Decides what a chat completion asks for. Pure: no HTTP, so that a line of a batch is read by the same."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.structured_outputs import StructuredOutputs
from broker_pipeline.messages.template_options import TemplateOptions
from gateway.api.openai.answer_form import Choice, call_form, only_form, schema_form
from gateway.api.openai.chat.messages import Conversation
from gateway.api.openai.chat.request import AllowedToolChoice, ChatRequest, ChosenTool, StreamOptions
from gateway.api.openai.sampling import priority_of, refuse_unsupported, sampling_of, template_variables
from gateway.api.openai.served_model import check_model
from gateway.api.openai.tools import allowed, check_names, shown_to_template
from gateway.intake.job_draft import JobDraft, check_media
from gateway.intake.job_limits import check_prompt, check_sampling
from gateway.intake.validation import decode_json
from gateway.settings import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDraft(JobDraft):
    """A checked chat completion: the job that it is, and how it is answered."""

    model: str
    stream: bool
    stream_options: StreamOptions


def parse(body: bytes, limits: Limits) -> ChatDraft:
    """Read and check the body of a chat completion.

    Raises `InvalidRequestError`, `ModelNotFoundError` or `PromptTooLongError`, naming the field.
    """
    request = decode_json(body, ChatRequest)
    refuse_unsupported(body)
    check_model(request.model, limits)
    conversation = Conversation(limits)
    for index, message in enumerate(request.messages):
        conversation.add(message, f"messages[{index}]")
    check_media(conversation.messages, conversation.sources, limits)
    choice = _choice(request)
    draft = ChatDraft(
        messages=tuple(conversation.messages),
        sources=tuple(conversation.sources),
        sampling=_sampling(request, choice),
        metadata=request.metadata or {},
        sent_as=conversation.sent_as | _name_of_limit(request),
        template=_template(request, choice),
        priority=priority_of(request),
        model=request.model,
        stream=bool(request.stream),
        stream_options=_stream_options(request),
    )
    check_sampling(draft, limits, "")
    check_prompt(draft, limits)
    return draft


def _form(request: ChatRequest, choice: Choice) -> StructuredOutputs | None:
    kind, schema = request.response_format, None
    if kind is not None and kind.json_schema is not None:
        schema = kind.json_schema.schema
    return only_form(
        response_format=schema_form(kind.type, schema, "response_format.json_schema") if kind else None,
        structured_outputs=request.structured_outputs,
        tool_choice=call_form(*choice),
    )


def _choice(request: ChatRequest) -> Choice:
    """Return what is to be called, and the functions that the model is told of."""
    choice, functions = request.tool_choice, tuple(tool.function for tool in request.tools or ())
    if isinstance(choice, AllowedToolChoice):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        return choice.allowed_tools.mode, allowed(functions, names, "tool_choice.allowed_tools.tools")
    return (choice.function.name if isinstance(choice, ChosenTool) else choice), functions


def _sampling(request: ChatRequest, choice: Choice) -> SamplingParams:
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequestError("this needs `logprobs`", field="top_logprobs")
    return sampling_of(
        request,
        _form(request, choice),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        n=request.n,
    )


def _name_of_limit(request: ChatRequest) -> dict[str, str]:
    return {"sampling.max_tokens": "max_completion_tokens" if request.max_completion_tokens else "max_tokens"}


def _template(request: ChatRequest, choice: Choice) -> TemplateOptions:
    _check_last_turn(request)
    called, functions = choice
    check_names(tuple(tool.function for tool in request.tools or ()), "tools")
    return TemplateOptions(
        tools=() if called == "none" else tuple(map(shown_to_template, functions)),
        variables=template_variables(request, request.reasoning_effort),
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
    )


def _check_last_turn(request: ChatRequest) -> None:
    if not request.continue_final_message:
        return
    if request.add_generation_prompt:
        raise InvalidRequestError("give either this or `add_generation_prompt`", field="continue_final_message")
    if request.messages[-1].role != "assistant":
        raise InvalidRequestError("the last message is not the assistant's", field="continue_final_message")


def _stream_options(request: ChatRequest) -> StreamOptions:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("this needs `stream`", field="stream_options")
    return request.stream_options or StreamOptions()
