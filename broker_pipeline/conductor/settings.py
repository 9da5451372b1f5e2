"""Settings of the conductor, as its command parses them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.conductor.workers.roster import RosterTimes
from broker_pipeline.scheduling.drafts.limits import DraftLimits
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.policies.admission import AdmissionLimits
from broker_pipeline.scheduling.policies.retries import RetryLimits
from broker_pipeline.storage.jobs import ACK_WAIT_S

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveSeconds = Annotated[float, Meta(gt=0)]


class ConductorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one conductor keeps to. Times in seconds."""

    model: str
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """auto: that of the stage that was started first."""
    max_sessions: PositiveInt = 512
    """Sessions that hold KV on one route at a time."""
    max_jobs: PositiveInt = 1024
    """Jobs taken from the queue and not finished."""
    max_preparing: PositiveInt = 128
    """Sessions that one vision worker is asked for at a time: what stages take per second, times the seconds that
    preparing takes, or the stages run dry."""
    max_waiting: PositiveInt = 64
    """Prepared sessions of each route that have not begun; their visual rows lie at the stages meanwhile."""
    max_batch_tokens: PositiveInt = 8192
    kv_step_tokens: PositiveInt = 128
    """KV that a session reserves ahead."""
    copy_prefixes: bool = True
    """Whether sessions begin with KV of others whose prompts begin alike."""
    speculate_tokens: Annotated[int, Meta(ge=0, le=64)] = 0
    """Tokens drafted for a session at a time, by what it has said before; 0: none."""
    speculate_sessions: PositiveInt | None = None
    """Most sessions of a microbatch that are drafted for; None: as many as `FEW_TOKENS` hold with their drafts."""
    kept_prefix_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Most of each stage's KV that is kept of finished sessions for others to begin with, while nobody needs it."""
    default_max_tokens: PositiveInt | None = None
    """Output limit of jobs that ask for none; None: the model's, or a share of the room."""
    max_attempts: PositiveInt = 5
    max_deliveries: PositiveInt = 20
    """Deliveries of one job, over all conductors, before it fails."""
    on_other_model: Literal["restart", "fail"] = "restart"
    """What becomes of a job with tokens of another model: from token 0 with this one, or `model_changed`."""
    deadline_s: PositiveSeconds = 30.0
    first_deadline_s: PositiveSeconds = 180.0
    prepare_timeout_s: PositiveSeconds = 60.0
    route_timeout_s: PositiveSeconds = 1800.0
    """How long a job that was taken waits for a route that can hold it: stages that start again load for minutes."""
    heartbeat_timeout_s: PositiveSeconds = 2.5
    lease_ttl_s: PositiveSeconds = 10.0
    """How long Redis may be away before a conductor gives up; one that is gone is found out by the others sooner."""
    ack_wait_s: PositiveSeconds = ACK_WAIT_S
    predicted_captions_per_s: Annotated[float, Meta(gt=0)] | None = None
    """What a plan expects of the whole pipeline: shown to whoever asks before there is a rate."""
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] | None = None

    @property
    def scheduler_limits(self) -> SchedulerLimits:
        """What the scheduler keeps to."""
        return SchedulerLimits(
            max_sessions=self.max_sessions,
            max_batch_tokens=self.max_batch_tokens,
            kv_step_tokens=self.kv_step_tokens,
            drafts=DraftLimits.of(self.speculate_tokens, self.speculate_sessions),
            kept_prefix_share=self.kept_prefix_share,
            deadline_s=self.deadline_s,
            first_deadline_s=self.first_deadline_s,
        )

    @property
    def admission_limits(self) -> AdmissionLimits:
        """How many jobs are held ahead of the stages."""
        return AdmissionLimits(self.max_jobs, self.max_preparing, self.max_waiting)

    @property
    def retry_limits(self) -> RetryLimits:
        """How often a job is tried again."""
        return RetryLimits(max_attempts=self.max_attempts)

    @property
    def roster_times(self) -> RosterTimes:
        """When a worker counts as silent."""
        return RosterTimes(heartbeat_timeout_s=self.heartbeat_timeout_s)
