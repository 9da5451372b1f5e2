"""Between conductor, vision workers and stages: prompts and visual rows."""

from typing import Annotated

from msgspec import Meta

from broker_pipeline.errors import Failure
from broker_pipeline.messages.activation import VisualSpan
from broker_pipeline.messages.base import (
    Count,
    FencedMessage,
    Name,
    PipelineMessage,
    PositiveCount,
    Seconds,
    Subject,
    WireMessage,
    WireStruct,
)
from broker_pipeline.messages.jobs import ChatMessage
from broker_pipeline.messages.template_options import PLAIN_TEMPLATE, TemplateOptions


class RowTarget(WireStruct, frozen=True, kw_only=True):
    """A stage that needs visual rows: the first stage the merged embeddings, the owner of layer j those of level j."""

    subject: Subject
    embeds: bool = False
    levels: tuple[Annotated[int, Meta(ge=0, le=15)], ...] = ()


class PrepareRequest(FencedMessage, frozen=True, kw_only=True):
    """Asks a vision worker to turn a conversation into tokens, positions and visual rows."""

    session: Name
    attempt: PositiveCount
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=1024)]
    template: TemplateOptions = PLAIN_TEMPLATE
    targets: tuple[RowTarget, ...] = ()
    max_prompt_tokens: PositiveCount
    budget_s: Seconds


class PrepareCancel(PipelineMessage, frozen=True, kw_only=True):
    """Takes a request back that another worker has answered. There is no answer; too late, it changes nothing."""

    session: Name
    attempt: PositiveCount


class PreparedSession(WireMessage, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The answer. Tensors: `token_ids` int32 [n], `positions` int32 [3, n]. Rows are already at their stages."""

    session: Name
    attempt: PositiveCount
    worker: Name
    failure: Failure | None = None
    num_tokens: Count = 0
    position_delta: int = 0
    """Position of the token with index c of a decode step, on all three axes, is c + position_delta."""
    visual: tuple[VisualSpan, ...] = ()
    visual_content: tuple[Annotated[str, Meta(max_length=256)], ...] = ()
    """Names what the rows of each of `visual` were made of: the same name, the same rows. Earlier releases say none."""
    fetch_s: Seconds = 0.0
    preprocess_s: Seconds = 0.0
    compute_s: Seconds = 0.0


class RowDelivery(FencedMessage, frozen=True, kw_only=True):
    """Visual rows on their way to a stage. Tensors: `embeds` [r, H] and `deepstack.J` [r, H] in the model's dtype."""

    session: Name
    attempt: PositiveCount


class RowReceipt(WireMessage, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A stage's answer to a `RowDelivery`."""

    session: Name
    attempt: PositiveCount
    failure: Failure | None = None
