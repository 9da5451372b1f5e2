"""Items of a conversation become turns; what the model said between turns of others is one of its own. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from broker_pipeline.errors import InvalidRequestError
from gateway.api.openai.chat.messages import Conversation
from gateway.api.openai.chat.request import Message
from gateway.api.openai.content_parts import OutputText, TextContent
from gateway.api.openai.responses.request import InputItem
from gateway.api.openai.tools import CalledFunction, CalledTool, earlier_call


class ItemReader:
    """Adds items to a conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._reasoning = ""
        self._parts: list[TextContent] = []
        self._calls: list[CalledTool] = []
        self._path = ""

    def read(self, items: Sequence[InputItem]) -> None:
        """Add all of them; raises `InvalidRequestError` naming the field."""
        for index, item in enumerate(items):
            path = f"input[{index}]"
            if item.type == "function_call":
                self._begin_own(path)
                self._calls.append(_call(item, path))
            elif item.type == "reasoning":
                self._begin_own(path)
                self._reasoning += "".join(part.text for part in _texts(item, path) or item.summary or ())
            elif item.role == "assistant":
                self._begin_own(path)
                self._parts += _texts(item, path)
            else:
                self._end_own()
                self._add_other(item, path)
        self._end_own()

    def _begin_own(self, path: str) -> None:
        self._path = self._path or path

    def _end_own(self) -> None:
        if self._path:
            message = Message(
                role="assistant",
                content=tuple(self._parts),
                reasoning=self._reasoning,
                tool_calls=tuple(self._calls),
            )
            self._conversation.add(message, self._path)
        self._path, self._reasoning, self._parts, self._calls = "", "", [], []

    def _add_other(self, item: InputItem, path: str) -> None:
        if item.type == "function_call_output":
            self._conversation.add(Message(role="tool", content=item.output), path, content=f"{path}.output")
            return
        if item.role is None:
            raise InvalidRequestError("a message has a role", field=f"{path}.role")
        self._conversation.add(Message(role=item.role, content=item.content), path)


def _call(item: InputItem, path: str) -> CalledTool:
    if item.name is None:
        raise InvalidRequestError("a call has the name of its function", field=f"{path}.name")
    function = CalledFunction(name=item.name, arguments=item.arguments)
    earlier_call(function, path)  # what is wrong with it is called by its name here
    return CalledTool(function=function)


def _texts(item: InputItem, path: str) -> Sequence[TextContent]:
    content = item.content or ()
    if isinstance(content, str):
        return (OutputText(text=content),)
    texts = tuple(part for part in content if isinstance(part, TextContent))
    if len(texts) != len(content):
        raise InvalidRequestError("what the model said is text", field=f"{path}.content")
    return texts
