"""Where the time of a round went: what makes a shortfall visible without another run."""

from __future__ import annotations

import msgspec

from trials.bench.spread import Spread, shown


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One worker during a round, from its heartbeats and from the timings of its microbatches."""

    worker: str
    busy: float
    """Share of the time that it spent computing, as it counts that itself."""
    microbatches_per_s: float
    tokens_per_microbatch: float
    queue_ms: float | None = None
    """Mean wait of a microbatch between arrival and computation; stages only."""
    compute_ms: float | None = None
    """Mean computation of a microbatch; stages only."""

    def __str__(self) -> str:
        text = f"{self.worker}: busy {self.busy:.0%}, {shown(self.microbatches_per_s)} microbatches/s"
        text += f" of {shown(self.tokens_per_microbatch)} tokens"
        if self.queue_ms is not None and self.compute_ms is not None:
            text += f", {shown(self.queue_ms)} ms waiting + {shown(self.compute_ms)} ms computing each"
        return text


class GpuLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs during a round, as their driver counts: means over time."""

    utilisation: float
    """Share of the time in which some kernel ran."""
    watts: float
    memory_mb: float

    def __str__(self) -> str:
        return f"GPU: kernels {self.utilisation:.0%} of the time, {self.watts:.0f} W, {self.memory_mb:,.0f} MiB"


class PromptLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts of a round as conductors count them: kept tokens are some of those copied."""

    num_tokens: int
    num_copied_tokens: int
    num_kept_tokens: int
    """Copied from what was kept of sessions that had ended."""
    num_kept_hits: int
    """Sessions that began so."""
    num_evictions: int

    def since(self, before: PromptLoad | None) -> PromptLoad:
        """Return what has come since an earlier count."""
        counts = {name: getattr(self, name) - getattr(before, name, 0) for name in self.__struct_fields__}
        return PromptLoad(**counts)

    def __str__(self) -> str:
        return (
            f"prompts: {self.num_tokens} tokens, {self.num_copied_tokens} of them copied, {self.num_kept_tokens} from "
            f"what was kept; {self.num_kept_hits} sessions began with that, {self.num_evictions} made room"
        )


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """One round through the whole system."""

    workers: tuple[WorkerLoad, ...]
    results_per_s: float
    """Microbatches that came back to the conductor."""
    tokens_per_result: float
    """Sampled tokens of one."""
    outside_ms: float | None
    """Mean part of a session's token round that is neither waiting at a stage nor computing: messages, the conductor,
    and waiting for the turn of the session's microbatch. None where too few sessions were seen running."""
    num_sessions: dict[str, float]
    """Mean number of sessions by what they were doing, as the conductor shows."""
    waits_for: dict[str, float]
    """Share of the time in which the conductor took no job from the queue, by reason."""
    submit_s: Spread
    """Time of a submission's HTTP request."""
    job_s: Spread
    """From submission to result, as the client sees it."""
    gpus: GpuLoad | None
    prompts: PromptLoad | None = None

    def lines(self) -> list[str]:
        """Return it as people read it."""
        states = ", ".join(f"{name} {shown(number)}" for name, number in self.num_sessions.items() if number >= 0.05)
        lines = [str(worker) for worker in self.workers]
        if self.gpus is not None:
            lines.append(str(self.gpus))
        outside = f", {shown(self.outside_ms)} ms of a token round outside the stages" if self.outside_ms else ""
        lines.append(
            f"conductor: {shown(self.results_per_s)} results/s of {shown(self.tokens_per_result)} tokens{outside}"
        )
        if self.prompts is not None:
            lines.append(str(self.prompts))
        lines.append(f"sessions on average: {states or 'none'}")
        lines += [f"took no job {share:.0%} of the time: {reason}" for reason, share in self.waits_for.items()]
        lines.append(f"client: submit {self.submit_s.scaled(1e3)} ms, job {self.job_s.scaled(1e3)} ms")
        return lines
