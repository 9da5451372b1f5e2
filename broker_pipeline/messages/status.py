"""What the conductor of a share shows of it: written to Redis every second, merged and read by gateways."""

from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.messages.base import Count, PositiveCount, Seconds
from broker_pipeline.messages.workers import BlockRange, TransportCounts

SERVING_STATES = ("ready", "trial")
"""States of workers that are given something."""
Share = Annotated[float, Meta(ge=0, le=1)]


class _Shown(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything here: immutable. A later release may tell more, which is passed over."""


class WorkerTotals(_Shown, frozen=True, kw_only=True):
    """What a worker has done since its process began."""

    busy_s: Seconds = 0.0
    """Seconds in which it computed."""
    bubble_s: Seconds = 0.0
    """Seconds in which it held sessions and had nothing to compute."""
    queue_s: Seconds = 0.0
    """Seconds that microbatches waited in it, added up."""
    num_microbatches: Count = 0
    """Microbatches of a stage, batches of a vision tower."""
    num_tokens: Count = 0
    """Tokens of a stage, visual tokens of a tower."""
    num_cache_hits: Count = 0
    """Pictures that a vision worker found encoded already."""
    num_cache_misses: Count = 0


class StageStatus(_Shown, frozen=True, kw_only=True):
    """One stage worker that the conductor uses or used lately."""

    worker: str
    instance: str
    blocks: BlockRange
    state: str
    """`ready`, `draining`, `suspended` while it gets nothing, or `trial` while it gets one session at a time."""
    reason: str = ""
    """Why it is suspended or on trial; or why it fails everybody, where no other can take its place."""
    kv_capacity_tokens: Count
    kv_used_tokens: Count
    """Tokens reserved for sessions."""
    kv_kept_tokens: Count = 0
    """Beside these, tokens kept of sessions that have finished; there is room where they are."""
    busy: Share
    """Share of the last seconds that it spent computing."""
    bubble: Share = 0.0
    """Share of the last seconds in which it held sessions and had nothing to compute."""
    totals: WorkerTotals = WorkerTotals()


class VisionStatus(_Shown, frozen=True, kw_only=True):
    """One vision worker."""

    worker: str
    instance: str
    state: str
    reason: str = ""
    num_preparing: Count
    """Sessions that it is being asked for."""
    num_overtaken: Count = 0
    """Requests that another has answered in its place, in this tenure."""
    busy: Share
    totals: WorkerTotals = WorkerTotals()


class RouteStatus(_Shown, frozen=True, kw_only=True):
    """One chain of workers that holds the whole model."""

    workers: tuple[str, ...]
    blocks: tuple[BlockRange, ...]
    num_sessions: Count
    num_in_flight: Count
    """Microbatches under way."""


class RefusedWorker(_Shown, frozen=True, kw_only=True):
    """A worker that announced itself and is not used."""

    worker: str
    instance: str
    reason: str


class SessionLimits(_Shown, frozen=True, kw_only=True):
    """How long the sessions of a pipeline may be, in tokens."""

    max_tokens_in_all: Count
    """Prompt and output together: what the model takes, or the KV of the route with the most room."""
    max_position_embeddings: Count
    """What the model takes, in all."""
    default_max_tokens: Count
    """Output limit of jobs that ask for none; less where the prompt leaves less room."""
    default_max_tokens_reasoning: Count
    """The same where the model reasons first."""
    longest_token_bytes: Count = 0
    """Most bytes of text that a token stands for; 0 where nothing bounds them."""


class HedgeCounts(_Shown, frozen=True, kw_only=True):
    """Requests to vision workers, and those that were made of a second one as well since the first was late."""

    num_requests: Count = 0
    num_hedges: Count = 0
    num_won: Count = 0
    """Hedges that were answered first."""


class KeptCounts(_Shown, frozen=True, kw_only=True):
    """KV that is kept of sessions that have finished, for others that begin alike."""

    num_prefixes: Count = 0
    num_tokens: Count = 0
    num_hits: Count = 0
    """Sessions of this tenure that have begun with one of them."""
    num_hit_tokens: Count = 0
    """Tokens that these had copied: a part of `num_copied_tokens`."""
    num_evictions: Count = 0
    """Those that made room in this tenure."""


class ShareStatus(_Shown, frozen=True, kw_only=True):
    """One share, and who conducts it."""

    share: str
    instance: str
    epoch: Count
    num_routes: Count
    num_running: Count
    """Sessions that stages compute."""
    captions_per_s: Annotated[float, Meta(ge=0)]


class ConductorStatus(_Shown, frozen=True, kw_only=True):
    """One share as its conductor sees it, or all of a pipeline together. Rates are over the last ten seconds."""

    instance: str
    epoch: Count
    updated_at: Seconds
    uptime_s: Seconds
    fingerprint: str
    model: str = ""
    """Name of the model, as results have it."""
    vocab_size: PositiveCount | None = None
    """Token ids are below it."""
    routes: tuple[RouteStatus, ...]
    missing_blocks: tuple[BlockRange, ...]
    """Decoder layers that no usable worker holds."""
    stages: tuple[StageStatus, ...]
    vision: tuple[VisionStatus, ...]
    refused: tuple[RefusedWorker, ...]
    waits_for: str | None
    """Why no further job is taken from the queue at this moment; null when one would be."""
    num_sessions: dict[str, int]
    """Sessions by what they are doing: preparing, waiting, running, recovering, finishing."""
    num_jobs_waiting: Count
    """Jobs in the queue that nobody has taken."""
    tokens_per_s: Annotated[float, Meta(ge=0)]
    captions_per_s: Annotated[float, Meta(ge=0)]
    """Jobs finished with a result, per second."""
    predicted_captions_per_s: Annotated[float, Meta(ge=0)] = 0.0
    """What the plan of the whole pipeline says of that; 0 without one."""
    num_finished: dict[str, int]
    """Jobs that this conductor has ended, by status."""
    num_replays: Count
    """Attempts beyond the first that this conductor has begun."""
    num_preemptions: Count = 0
    """Times that a session gave its KV to older ones in this tenure, to go on later."""
    num_prompt_tokens: Count = 0
    """Tokens of the prompts of all sessions that were sent in this tenure."""
    num_copied_tokens: Count = 0
    """Those of them that were not computed, since another session's KV was copied."""
    num_draft_tokens: Count = 0
    """Tokens that were guessed, and verified by stages, in this tenure."""
    num_accepted_tokens: Count = 0
    """Those of them that were right."""
    kept: KeptCounts = KeptCounts()
    num_uncommitted_tokens: Count
    """Tokens sampled that Redis does not hold yet."""
    limits: SessionLimits | None = None
    hedges: HedgeCounts = HedgeCounts()
    share: str = ""
    """The share that it is about; of several together, the first."""
    shares: tuple[ShareStatus, ...] = ()
    """Of several together, each one."""
    transport: dict[str, TransportCounts] = {}
    """By process: workers by name, and `conductor`, of several `conductor-INSTANCE`."""
