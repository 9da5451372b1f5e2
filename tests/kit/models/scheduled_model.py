"""The whole model in one process, with the scheduler that a conductor has: what it plans is what the stages compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.messages.activation import Envelope, MicrobatchResult, SessionOpen, VisualSpan
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from broker_pipeline.scheduling.drafts.limits import DraftLimits
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import PlannedBatch
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.scheduling.session_state import PreparedPrompt, SessionState
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.compute.generate import Request, deliver_visual_rows
from stages.compute.microbatch import Microbatch, StageOutput
from stages.compute.stage_compute import StageCompute
from stages.qwen3_vl.positions import plan_positions
from stages.worker.tensors import from_wire

FEW = {3 + token: 60.0 for token in range(4)}
"""A bias that makes four tokens likely: random weights repeat nothing by themselves when they are sampled from."""
_PATTERN = (7, 19, 23, 40, 11)
_BUILDER = EnvelopeBuilder("main", "f" * 64, 1, "results")


def repetitive(session: str, sampling: SamplingSettings, num_tokens: int = 40) -> Request:
    """Return a request whose prompt is one pattern, six times."""
    return Request(session, _PATTERN * 6, sampling=sampling, max_tokens=num_tokens)


@dataclass(eq=False)
class ScheduledModel:
    """Generates for requests as a pipeline does, envelope by envelope."""

    stages: Sequence[StageCompute]
    drafts: DraftLimits
    kv_step_tokens: int = 5
    num_steps: int = 0
    said: dict[str, list[SampledToken]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = SchedulerLimits(drafts=self.drafts, kv_step_tokens=self.kv_step_tokens)
        self.scheduler = Scheduler(self.stages[-1].blocks.stop, limits)
        self._by_name = {f"stage-{number}": stage for number, stage in enumerate(self.stages)}
        for name, stage in self._by_name.items():
            capacity = stage.kv.capacity_tokens
            self.scheduler.join(StageInfo(name, name, name, stage.blocks, capacity, 1024, verifies_drafts=True))

    @property
    def num_accepted(self) -> int:
        return self.scheduler.batches.drafting.num_accepted

    def generate(self, requests: Sequence[Request]) -> list[list[SampledToken]]:
        """Return the sampled tokens of each request; an end-of-sequence token is the last one."""
        (route,) = self.scheduler.routes.open_routes
        for order, request in enumerate(requests):
            self.said[request.session] = []
            if request.visuals is not None:
                deliver_visual_rows(self.stages, request.session, request.attempt, request.visuals)
            assert self.scheduler.add(_state(request, order, route), 0.0) is None
        wanted = {request.session: request for request in requests}
        while planned := self.scheduler.plan(0.0):
            for microbatch in planned:
                self._step(microbatch, wanted)
        return [self.said[request.session] for request in requests]

    def _step(self, microbatch: PlannedBatch, wanted: dict[str, Request]) -> None:
        self.num_steps += bool(microbatch.segments)
        names = [worker.name for worker in microbatch.route.workers]
        result = self._compute(names, *_BUILDER.build(microbatch, 0.0))
        for sampled in self.scheduler.complete(result, 0.0).sampled:
            session = sampled.session.key.session
            for token in sampled.tokens:
                self.said[session].append(token)
                if _is_finished(wanted[session], self.said[session]):
                    self.scheduler.release(session)
                    break

    def _compute(self, names: list[str], envelope: Envelope, tensors: dict[str, WireTensor]) -> MicrobatchResult:
        n = sum(segment.count for segment in envelope.segments)
        output: StageOutput | None = None
        for stage in map(self._by_name.__getitem__, names):
            for closing in envelope.closes:
                stage.close(closing.session, closing.attempt)
            for opening in envelope.opens:
                stage.open(opening, _history(opening, tensors))
            if n and output is None:
                positions = from_wire("positions", tensors["positions"], dtype=torch.int32, shape=(3, n))
                ids = from_wire("token_ids", tensors["token_ids"], dtype=torch.int32, shape=(n,))
                output = stage.run(Microbatch(envelope.segments, positions, token_ids=ids))
            elif output is not None:
                output = stage.run(Microbatch(output.segments, output.positions, hidden=output.hidden))
            assert output is None or not (output.failures or output.repeats)
        return MicrobatchResult(
            pipeline="main", fingerprint="f" * 64, epoch=1, microbatch=envelope.microbatch,
            worker=names[-1], tokens=output.tokens if output else (),
        )  # fmt: skip


def _history(opening: SessionOpen, tensors: dict[str, WireTensor]) -> list[int]:
    """Return the tokens before; of a session that is opened by itself."""
    count = opening.num_history_tokens
    return from_wire("history", tensors["history"], dtype=torch.int32, shape=(count,)).tolist() if count else []


def _state(request: Request, order: int, route: Route) -> SessionState:
    plan = plan_positions(len(request.token_ids), request.groups)
    visual = tuple(VisualSpan(offset=group.start, count=group.count, row=group.visual_row) for group in request.groups)
    ids = torch.tensor(request.token_ids, dtype=torch.int32)
    return SessionState(
        key=SessionKey(request.session, request.attempt),
        order=order,
        route=route,
        prompt=PreparedPrompt(ids.numpy(), plan.positions.numpy(), plan.delta, visual),
        sampling=request.sampling,
        num_kv_tokens=len(request.token_ids) + request.max_tokens,
    )


def _is_finished(request: Request, said: Sequence[SampledToken]) -> bool:
    return said[-1].token_id in request.eos_token_ids or len(said) >= request.max_tokens
