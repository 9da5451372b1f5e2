"""A job in a conductor's hands, from its delivery to its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from broker_pipeline.conductor.interruption import Interruption
from broker_pipeline.errors import CancelledJobError
from broker_pipeline.messages.jobs import FIRST, Flow, JobSpec, Turn
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.scheduling.policies.retries import RetryPolicy
from broker_pipeline.scheduling.session_state import PreparedPrompt
from broker_pipeline.storage.jobs import Delivery

T = TypeVar("T")

Phase = Literal["preparing", "computing", "recovering", "finishing"]


@dataclass(slots=True, eq=False)
class LiveJob:
    """One job. `order` is its place among all jobs of this conductor and stays the same over attempts."""

    delivery: Delivery
    order: int
    retries: RetryPolicy
    """What its computation has been through."""
    turn: Turn = FIRST
    """Its place among the jobs that wait for room."""
    prompt: PreparedPrompt | None = None
    """Once prepared; a replay of a job without pictures needs no other."""
    sampling: SamplingSettings | None = None
    """What the stages obey, once decided: for the first output, the others' seeds follow."""
    is_reasoning: bool = False
    """Whether its prompt opens reasoning, once that is known."""
    num_kv_tokens: int = 0
    """Prompt plus output limit, once known."""
    num_attempts: int = 0
    """Begun in this conductor."""
    last_attempt: int | None = None
    """The number of the last of these in Redis, over all conductors."""
    preparing: RetryPolicy = field(init=False)
    """What its preparation has been through, since it last succeeded."""
    vision_tried: set[str] = field(default_factory=set, init=False)
    """Instances of vision workers that were asked to prepare it: others are asked first."""
    _phase: Phase = "preparing"
    _phases: Counter[Phase] = field(default_factory=Counter, init=False)
    """How many jobs are in each phase, of those that it is held with."""
    _cancellation: Interruption = field(default_factory=Interruption, init=False)

    def __post_init__(self) -> None:
        self.preparing = self.retries.anew()

    @property
    def phase(self) -> Phase:
        """What is being done for it."""
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._phases[self._phase] -= 1
        self._phases[phase] += 1
        self._phase = phase

    def count_in(self, phases: Counter[Phase]) -> None:
        """Be counted among other jobs from now on."""
        self._phases = phases
        phases[self._phase] += 1

    @property
    def spec(self) -> JobSpec:
        """What was asked for."""
        return self.delivery.spec

    @property
    def job_id(self) -> str:
        """Its id, which is its session's as well."""
        return self.delivery.spec.job_id

    def take_prompt(self, prompt: PreparedPrompt) -> None:
        """Note that the job is prepared: however that went before, the job is not to blame."""
        self.prompt = prompt
        self.preparing = self.retries.anew()
        self.vision_tried.clear()

    def cancel(self) -> None:
        """Stop at the next chance."""
        self._cancellation.interrupt(CancelledJobError("somebody asked for the job to stop"))

    async def unless_cancelled(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something; raises `CancelledJobError`, and cancels it, when the job is cancelled first."""
        with self._cancellation:
            return await work()


class LiveJobs:
    """The jobs that this conductor holds."""

    def __init__(self) -> None:
        self._jobs: dict[str, LiveJob] = {}
        self._phases: Counter[Phase] = Counter()
        self.flows: Counter[Flow] = Counter()
        """How many there are of each flow."""
        self.num_finished: Counter[str] = Counter()
        self.num_replays = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(list(self._jobs.values()))

    def get(self, job_id: str) -> LiveJob | None:
        """Return a job by its id."""
        return self._jobs.get(job_id)

    def add(self, job: LiveJob) -> None:
        """Hold a job."""
        self._jobs[job.job_id] = job
        self.flows[job.spec.flow] += 1
        job.count_in(self._phases)

    def remove(self, job: LiveJob) -> None:
        """Hold a job no more."""
        if self._jobs.pop(job.job_id, None) is not None:
            self._phases[job.phase] -= 1
            self.flows[flow := job.spec.flow] -= 1
            if not self.flows[flow]:
                del self.flows[flow]

    def count(self, phase: Phase) -> int:
        """Return the number of jobs in a phase."""
        return self._phases[phase]
