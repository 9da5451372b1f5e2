"""What a chat template is told besides roles and texts: tools, calls of them, and its own variables."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from broker_pipeline.messages.base import WireStruct

MAX_TOOLS = 128
MAX_TOOL_CALLS = 128
ENABLE_THINKING = "enable_thinking"
"""The variable that says whether a model shall reason, as the families' templates call it."""
RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
    | {"raise_exception", "strftime_now", "bos_token", "eos_token", "pad_token", "unk_token"}
)
"""What a template has from elsewhere, so that no job sets it as a variable."""


class ToolCall(WireStruct, frozen=True, kw_only=True):
    """A call that the model made earlier in the conversation."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)


class TemplateOptions(WireStruct, frozen=True, kw_only=True):
    """How a conversation is rendered."""

    tools: Annotated[tuple[dict[str, Any], ...], Meta(max_length=MAX_TOOLS)] = ()
    """Functions that the model may call, as JSON Schema describes them."""
    variables: dict[str, Any] = msgspec.field(default_factory=dict)
    """The template's own, such as `enable_thinking`."""
    add_generation_prompt: bool = True
    """Whether the prompt opens the model's turn."""
    continue_final_message: bool = False
    """Whether the prompt ends within the last message, for the model to go on with it."""

    def __post_init__(self) -> None:
        for name in self.variables:
            if name in RESERVED_VARIABLES:
                raise ValueError(f"Invalid field `variables`: `{name}` is not for a job to set")


PLAIN_TEMPLATE = TemplateOptions()
"""The very object is left out of what is written."""
