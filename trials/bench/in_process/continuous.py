"""Continuous batching in one process: what a pipeline computes, without broker, hosts or other processes.

    waiting ──► tower (several pictures in one go) ──► live ──► one microbatch: a chunk for whoever is not prefilled,
                                                        ▲       one token for everybody else
                                                        └──────── sampled tokens; who has all of them leaves

It is what pipelines are measured against, so it does nothing that a careful single-process server would not. Where a
GPU computes, threads read pictures ahead. `bench pipeline` runs it as a program: see `LoadedProcess`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from broker_pipeline.messages.activation import Segment, SessionOpen
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from stages.artifact import Artifact
from stages.compute.fused.captured_tower import capture_tower
from stages.compute.generate import deliver_visual_rows, run_stages, window_spans
from stages.compute.loading import (
    compute_dtype,
    load_stage,
    load_vision,
    stage_tensor_names,
    vision_tensor_names,
)
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.device.choice import choose_device
from stages.prompt.preprocess import Patches
from stages.qwen3_vl.positions import VisualGroup, decode_positions, plan_positions
from trials.bench.in_process.rounds import serve_rounds
from trials.bench.work import InProcessOrder, Work
from trials.prompts import Prompts

_MAX_BATCH_TOKENS = 4096
_MAX_BATCH_PICTURES = 16
_MAX_BATCH_PATCHES = 16_384
_GREEDY = SamplingSettings()


@dataclass(slots=True)
class _Session:
    name: str
    token_ids: tuple[int, ...]
    groups: tuple[VisualGroup, ...]
    positions: Tensor
    """int32 `[3, n]` of the prompt."""
    delta: int
    num_computed_tokens: int = 0
    generated: list[int] = field(default_factory=list)

    def next_segment(self, room: int) -> tuple[Segment, Tensor, Tensor]:
        """Return the next tokens to compute, at most `room`: segment, ids `[n]`, positions `[3, n]`."""
        start, num_prompt = self.num_computed_tokens, len(self.token_ids)
        count = min(room, num_prompt - start) if start < num_prompt else 1
        segment = Segment(
            session=self.name,
            attempt=1,
            start=start,
            count=count,
            wants_token=start + count >= num_prompt,
            visual=window_spans(self.groups, start, count) if start < num_prompt else (),
        )
        if start < num_prompt:
            ids = torch.tensor(self.token_ids[start : start + count], dtype=torch.int32)
            return segment, ids, self.positions[:, start : start + count]
        ids = torch.tensor(self.generated[-1:], dtype=torch.int32)
        return segment, ids, decode_positions(start, 1, self.delta)


class ContinuousBatch:
    """The whole model in this process."""

    def __init__(self, order: InProcessOrder) -> None:
        """Load the model."""
        artifact = Artifact.open(order.model)
        config = artifact.config
        self._pictures = Path(order.rounds.pictures)
        self._readers = ThreadPoolExecutor(order.num_threads) if order.device.startswith("cuda") else None
        self._read_ahead: dict[str, Future[Patches]] = {}
        self.num_prompt_tokens = 0
        """Of the last session."""
        options = ComputeOptions(
            order.device,
            order.dtype,
            max_batch_tokens=_MAX_BATCH_TOKENS,
            max_step_sessions=order.rounds.warm_up.num_in_flight,
        )
        device, dtype = choose_device(options.device), compute_dtype(config, options.dtype)
        num_layers = config.text.num_layers
        self._config = config
        self._prompts = Prompts(artifact)
        whole = BlockRange(start=0, stop=num_layers)
        with artifact.reading(stage_tensor_names(config, 0, num_layers), device, dtype) as tensors:
            self._stage: StageCompute = load_stage(
                config, whole, tensors, kv_capacity_tokens=order.kv_tokens, options=options
            )
        with artifact.reading(vision_tensor_names(config), device, dtype) as tensors:
            tower = load_vision(config, tensors, options)
        self._tower = capture_tower(tower, _MAX_BATCH_PATCHES)

    def run(self, work: Work) -> int:
        """Do all of it and return the number of tokens that were sampled."""
        waiting = deque(work.pictures)
        live: list[_Session] = []
        num_sampled = 0
        while waiting or live:
            self._read_next(waiting)
            room = min(work.num_in_flight - len(live), _MAX_BATCH_PICTURES)
            names = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            if names:
                live += self._open(names, work)
            num_sampled += self._step(live)
            ended = [session for session in live if len(session.generated) >= work.num_output_tokens]
            for session in ended:
                self._stage.close(session.name, 1)
            live = [session for session in live if len(session.generated) < work.num_output_tokens]
        return num_sampled

    def _read_next(self, waiting: Sequence[str]) -> None:
        if self._readers is None:
            return
        for name in itertools.islice(waiting, 4 * _MAX_BATCH_PICTURES):
            if name not in self._read_ahead:
                self._read_ahead[name] = self._readers.submit(self._prompts.patches, self._pictures / name)

    def _patches(self, name: str) -> Patches:
        ahead = self._read_ahead.pop(name, None)
        return ahead.result() if ahead is not None else self._prompts.patches(self._pictures / name)

    def _open(self, names: Sequence[str], work: Work) -> Iterator[_Session]:
        patches = [self._patches(name) for name in names]
        encoded = self._tower.encode(torch.cat([each.rows for each in patches]), [each.grid for each in patches])
        rows = encoded.split([each.grid.num_patches // self._config.vision.merge_factor for each in patches])
        for name, each, own in zip(names, patches, rows, strict=True):
            prompt = self._prompts.build(work.prompt, [each])
            plan = plan_positions(len(prompt.token_ids), prompt.groups)
            self.num_prompt_tokens = num_prompt = len(prompt.token_ids)
            opening = SessionOpen(
                session=name,
                attempt=1,
                num_kv_tokens=num_prompt + work.num_output_tokens,
                num_prompt_tokens=num_prompt,
                sampling=_GREEDY,
            )
            self._stage.open(opening)
            deliver_visual_rows([self._stage], name, 1, own)
            yield _Session(name, prompt.token_ids, prompt.groups, plan.positions, plan.delta)

    def _step(self, live: Sequence[_Session]) -> int:
        taken: list[tuple[_Session, Segment]] = []
        ids: list[Tensor] = []
        positions: list[Tensor] = []
        room = _MAX_BATCH_TOKENS
        for session in live:
            if room == 0:
                break
            segment, own_ids, own_positions = session.next_segment(room)
            taken.append((session, segment))
            ids.append(own_ids)
            positions.append(own_positions)
            room -= segment.count
        segments = [segment for _, segment in taken]
        output = run_stages([self._stage], segments, torch.cat(ids), torch.cat(positions, dim=1))
        sampled = {token.session: token.token_id for token in output.tokens}
        for session, segment in taken:
            session.num_computed_tokens += segment.count
            if session.name in sampled:
                session.generated.append(sampled[session.name])
        return len(sampled)


if __name__ == "__main__":
    serve_rounds(ContinuousBatch, "compute")
