"""The whole model in one process: stages called one after the other, without broker.

The reference that distributed runs are compared with, and the baseline that benchmarks measure them against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from broker_pipeline.messages.activation import Segment, SessionOpen, VisualSpan
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from stages.compute.microbatch import Microbatch, StageOutput
from stages.compute.stage_compute import StageCompute
from stages.compute.visual_row_buffer import VisualRows
from stages.qwen3_vl.positions import VisualGroup, decode_positions, plan_positions
from stages.qwen3_vl.vision import TowerOutput


@dataclass(frozen=True, slots=True)
class Request:
    """One session: its prompt, its visual groups and their encodings, and how to sample."""

    session: str
    token_ids: tuple[int, ...]
    groups: tuple[VisualGroup, ...] = ()
    visuals: TowerOutput | None = None
    sampling: SamplingSettings = SamplingSettings()  # noqa: RUF009 - frozen
    max_tokens: int = 16
    eos_token_ids: tuple[int, ...] = ()
    attempt: int = 1
    generated: tuple[int, ...] = ()
    """Tokens that an earlier attempt has generated; they are prefilled with the prompt, and sampling goes on."""


def deliver_visual_rows(stages: Sequence[StageCompute], session: str, attempt: int, visuals: TowerOutput) -> None:
    """Hand every stage the visual rows that its layers need."""
    for stage in stages:
        needs = stage.visual_row_needs
        if needs:
            embeds = visuals.embeds if needs.embeds else None
            levels = {level: visuals.levels[level] for level in needs.levels}
            stage.visual_rows.put(session, attempt, 0, VisualRows(embeds, levels))


def window_spans(groups: Sequence[VisualGroup], start: int, count: int) -> tuple[VisualSpan, ...]:
    """Return the parts of visual groups that lie in tokens `[start, start + count)`, as spans of that segment."""
    spans = []
    for group in groups:
        first, stop = max(group.start, start), min(group.start + group.count, start + count)
        if first < stop:
            spans.append(
                VisualSpan(offset=first - start, count=stop - first, row=group.visual_row + first - group.start)
            )
    return tuple(spans)


def run_stages(
    stages: Sequence[StageCompute], segments: Sequence[Segment], token_ids: Tensor, positions: Tensor
) -> StageOutput:
    """Compute one microbatch on all stages; raises the first failure of any session."""
    batch = Microbatch(tuple(segments), positions=positions, token_ids=token_ids)
    for stage in stages:
        output = stage.run(batch)
        for _, error in output.failures:
            raise error
        batch = Microbatch(output.segments, positions=output.positions, hidden=output.hidden)
    return output


class WholeModel:
    """A pipeline without a broker, for requests that are computed together."""

    def __init__(self, stages: Sequence[StageCompute]) -> None:
        self.stages = tuple(stages)

    def generate(self, requests: Sequence[Request], *, chunk_tokens: int | None = None) -> list[list[SampledToken]]:
        """Generate for all requests: prompts in chunks, then one decode step for all at a time.

        Returns the sampled tokens of each request, in its order; an end-of-sequence token is the last one.
        """
        for request in requests:
            self._open(request)
        try:
            return self._run(requests, chunk_tokens)
        finally:
            for request in requests:
                for stage in self.stages:
                    stage.close(request.session, request.attempt)

    def _open(self, request: Request) -> None:
        tokens = request.token_ids + request.generated
        opening = SessionOpen(
            session=request.session,
            attempt=request.attempt,
            num_kv_tokens=len(request.token_ids) + request.max_tokens,
            num_prompt_tokens=len(request.token_ids),
            sampling=request.sampling,
            num_history_tokens=len(tokens) if request.sampling.needs_history else 0,
        )
        for stage in self.stages:
            stage.open(opening, tokens if request.sampling.needs_history else ())
        if request.visuals is not None:
            deliver_visual_rows(self.stages, request.session, request.attempt, request.visuals)

    def _run(self, requests: Sequence[Request], chunk_tokens: int | None) -> list[list[SampledToken]]:
        plans = [plan_positions(len(request.token_ids), request.groups) for request in requests]
        sampled = [
            self._prefill(request, plan.positions, plan.delta, chunk_tokens)
            for request, plan in zip(requests, plans, strict=True)
        ]
        while live := [i for i, request in enumerate(requests) if not _is_finished(request, sampled[i])]:
            self._step(live, requests, [plan.delta for plan in plans], sampled)
        return sampled

    def _prefill(
        self, request: Request, prompt_positions: Tensor, delta: int, chunk_tokens: int | None
    ) -> list[SampledToken]:
        tokens = request.token_ids + request.generated
        behind = decode_positions(len(request.token_ids), len(request.generated), delta)
        positions = torch.cat((prompt_positions, behind), dim=1)
        for start, count in _chunks(len(tokens), chunk_tokens or len(tokens)):
            visual = window_spans(request.groups, start, count)
            segment = _segment(request, start, count, wants_token=start + count == len(tokens), visual=visual)
            chunk = torch.tensor(tokens[start : start + count], dtype=torch.int32)
            output = run_stages(self.stages, [segment], chunk, positions[:, start : start + count])
        return list(output.tokens)

    def _step(
        self,
        live: Sequence[int],
        requests: Sequence[Request],
        deltas: Sequence[int],
        sampled: Sequence[list[SampledToken]],
    ) -> None:
        segments, ids, positions = [], [], []
        for i in live:
            last = sampled[i][-1]
            segments.append(_segment(requests[i], last.position, 1, wants_token=True))
            ids.append(last.token_id)
            positions.append(decode_positions(last.position, 1, deltas[i]))
        output = run_stages(self.stages, segments, torch.tensor(ids, dtype=torch.int32), torch.cat(positions, dim=1))
        for i, token in zip(live, output.tokens, strict=True):
            sampled[i].append(token)


def _chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(size, total - start)


def _segment(
    request: Request, start: int, count: int, *, wants_token: bool, visual: tuple[VisualSpan, ...] = ()
) -> Segment:
    return Segment(
        session=request.session,
        attempt=request.attempt,
        start=start,
        count=count,
        wants_token=wants_token,
        visual=visual,
    )


def _is_finished(request: Request, sampled: Sequence[SampledToken]) -> bool:
    ended = sampled[-1].token_id in request.eos_token_ids
    return ended or len(request.generated) + len(sampled) >= request.max_tokens
