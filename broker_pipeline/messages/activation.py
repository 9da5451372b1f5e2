"""The activation contract: a microbatch on its way through the stages, and its answer."""

from typing import Annotated

from msgspec import Meta

from broker_pipeline.errors import Failure
from broker_pipeline.messages.base import (
    Count,
    FencedMessage,
    Name,
    PositiveCount,
    Seconds,
    SessionRef,
    Subject,
    WireReport,
    WireStruct,
)
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings


class VisualSpan(WireStruct, frozen=True, kw_only=True):
    """`count` visual tokens at `offset` (of the segment, or of the prompt), using visual rows from `row` on."""

    offset: Count
    count: PositiveCount
    row: Count


class Segment(WireStruct, frozen=True, kw_only=True):
    """Tokens `[start, start + count)` of one session: many for a prefill chunk, one and drafts for a decode step."""

    session: SessionRef
    attempt: PositiveCount
    start: Count
    count: PositiveCount
    wants_token: bool = False
    """Whether the last stage samples the token that follows this segment."""
    num_kv_tokens: Count = 0
    """Tokens of KV that the session is to have from now on, where that is more than before; 0 leaves it."""
    num_drafts: Count = 0
    """How many of its last tokens are drafts: guesses, of which the next segment may take back some.

    The last stage samples behind each of them and behind the token before them, and answers all of these in order. Only
    for workers that say `verifies_drafts`.
    """
    visual: tuple[VisualSpan, ...] = ()


class SharedPrefix(WireStruct, frozen=True, kw_only=True):
    """The first tokens of a session, which another one that is open on the same stages has in KV: to be copied."""

    session: SessionRef
    attempt: PositiveCount
    num_tokens: PositiveCount
    num_rows: Count = 0
    """Visual rows that these tokens stand for, which the session needs no more."""


class SessionOpen(WireStruct, frozen=True, kw_only=True):
    """Opens a session on every stage of the route."""

    session: Name
    attempt: PositiveCount
    num_kv_tokens: PositiveCount
    """Tokens of KV to reserve at first; segments say by how much it grows."""
    num_prompt_tokens: PositiveCount
    sampling: SamplingSettings
    num_history_tokens: Count = 0
    """Tokens of this session in the tensor `history` (int32, sessions in the order of `opens`); 0 where not needed."""
    prefix: SharedPrefix | None = None
    """Then the session's first segment starts behind it. Only for workers that say `copies_prefixes`."""


class SessionClose(WireStruct, frozen=True, kw_only=True):
    """Frees a session's KV and rows on every stage of the route."""

    session: SessionRef
    attempt: PositiveCount
    num_kept_tokens: Count = 0
    """Tokens at its beginning whose KV stays all the same, for others to copy, until a second close without them. Only
    for workers that say `keeps_prefixes`.
    """


class SessionFailure(WireReport, frozen=True, kw_only=True):
    """Why one session could not go on in this microbatch; the others are not touched."""

    session: SessionRef
    attempt: PositiveCount
    failure: Failure
    worker: str = ""


class StageTiming(WireReport, frozen=True, kw_only=True):
    """Where a microbatch's time went on one stage."""

    worker: Name
    queue_s: Seconds
    compute_s: Seconds


class Envelope(FencedMessage, frozen=True, kw_only=True):
    """One microbatch on its way to a stage.

    Tensors: `positions` int32 [3, n]; first stage: `token_ids` int32 [n]; later stages: `hidden` [n, hidden_size] in
    the model's dtype; `history` int32 [sum of num_history_tokens] (only with opens that need it). n is the sum of the
    segments' counts, in their order.
    """

    microbatch: Count
    route: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=256)]
    """Subjects still to visit; the receiver's own stands first."""
    reply: Subject
    """Where the `MicrobatchResult` goes."""
    budget_s: Seconds
    """Seconds that remain for this microbatch. Relative, so that clocks of hosts need not agree."""
    segments: tuple[Segment, ...] = ()
    opens: tuple[SessionOpen, ...] = ()
    closes: tuple[SessionClose, ...] = ()
    failures: tuple[SessionFailure, ...] = ()
    """Sessions that an earlier stage had to leave out; they are in `segments` no more."""
    timings: tuple[StageTiming, ...] = ()


class MicrobatchResult(FencedMessage, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The one answer to every envelope: from the last stage, or from the stage that could not go on."""

    microbatch: Count
    worker: Name
    tokens: tuple[SampledToken, ...] = ()
    failures: tuple[SessionFailure, ...] = ()
    failure: Failure | None = None
    """Set when the whole microbatch failed; then nothing of it counts."""
    timings: tuple[StageTiming, ...] = ()
