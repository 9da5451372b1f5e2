"""Which workers together hold the whole model, in which order. Pure: records in, routes out.

    blocks  0        10        20        30
    a       [─────────)                         routes   a ► c ► e
    b       [─────────)                                  b ► d ► e
    c                 [─────────)
    d                 [─────────)               every worker serves on some route; e, which has no replica,
    e                           [─────────)     serves on both

Routes are as few as can be while every usable worker is on one: more of them would only make smaller batches.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from broker_pipeline import subjects
from broker_pipeline.messages.base import CONTRACT_VERSION
from broker_pipeline.messages.vision import RowTarget
from broker_pipeline.messages.workers import BlockRange, WorkerRecord


@dataclass(frozen=True, slots=True)
class PipelineIdentity:
    """What every stage of a pipeline has to agree on."""

    pipeline: str
    fingerprint: str
    dtype: str
    num_layers: int
    contract: int = CONTRACT_VERSION


@dataclass(frozen=True, slots=True)
class StageInfo:
    """A stage worker as routes and scheduler see it. `key` names one start of it, `name` outlives restarts."""

    key: str
    name: str
    subject: str
    blocks: BlockRange
    kv_capacity_tokens: int
    max_batch_tokens: int
    device_id: str = ""
    """Workers with the same one share it; empty where nothing is known."""
    device_slots: int = 1
    """Workers that the device computes for at the same time at full speed."""
    max_step_sessions: int = 0
    copies_prefixes: bool = False
    verifies_drafts: bool = False
    keeps_prefixes: bool = False

    @classmethod
    def from_record(cls, record: WorkerRecord) -> Self:
        """Take over an accepted stage record (see `refusal_of`)."""
        assert record.blocks is not None, "only accepted stage records become workers"
        return cls(
            key=record.instance,
            name=record.worker,
            subject=record.subject,
            blocks=record.blocks,
            kv_capacity_tokens=record.kv_capacity_tokens,
            max_batch_tokens=record.max_batch_tokens,
            device_id=record.device_id,
            device_slots=record.device_slots,
            max_step_sessions=record.max_step_sessions,
            copies_prefixes=record.copies_prefixes,
            verifies_drafts=record.verifies_drafts,
            keeps_prefixes=record.keeps_prefixes,
        )


@dataclass(frozen=True, slots=True)
class Route:
    """Workers whose block ranges, one after the other, are the whole model (or, for a message to one, just that)."""

    workers: tuple[StageInfo, ...]
    key: tuple[str, ...] = field(init=False, compare=False, repr=False)
    """The workers' keys: what makes two routes the same."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", tuple(worker.key for worker in self.workers))

    def __len__(self) -> int:
        return len(self.workers)

    def __str__(self) -> str:
        return " > ".join(worker.name for worker in self.workers)

    @property
    def work_subjects(self) -> tuple[str, ...]:
        """Where an envelope goes, stage by stage."""
        return tuple(subjects.work(worker.subject) for worker in self.workers)

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV that the smallest stage holds, and so the longest session that fits."""
        return min(worker.kv_capacity_tokens for worker in self.workers)

    @property
    def max_batch_tokens(self) -> int:
        """Tokens of the largest microbatch that every stage takes."""
        return min(worker.max_batch_tokens for worker in self.workers)

    @property
    def max_step_sessions(self) -> int:
        """Sessions of the largest microbatch that every stage computes at full speed."""
        return min(
            (worker.max_step_sessions for worker in self.workers if worker.max_step_sessions), default=sys.maxsize
        )

    @property
    def verifies_drafts(self) -> bool:
        """Whether all stages know what drafts are."""
        return all(worker.verifies_drafts for worker in self.workers)

    def row_targets(self, num_levels: int) -> tuple[RowTarget, ...]:
        """Return the stages that need visual rows: the first, and the owners of layers below `num_levels`."""
        targets = []
        for worker in self.workers:
            blocks = worker.blocks
            levels = tuple(range(blocks.start, min(blocks.stop, num_levels)))
            if blocks.start == 0 or levels:
                subject = subjects.rows(worker.subject)
                targets.append(RowTarget(subject=subject, embeds=blocks.start == 0, levels=levels))
        return tuple(targets)


def refusal_of(record: WorkerRecord, identity: PipelineIdentity) -> str | None:
    """Say why a stage or vision worker cannot serve this pipeline, or None when it can."""
    if record.pipeline != identity.pipeline:
        return f"serves pipeline {record.pipeline}, not {identity.pipeline}"
    if record.contract != identity.contract:
        return (
            f"speaks version {record.contract} of the contract, the conductor {identity.contract}; "
            "run the same release everywhere"
        )
    if record.fingerprint != identity.fingerprint:
        return (
            f"its artifact is {record.fingerprint[:12] or '(none)'}, the pipeline's {identity.fingerprint[:12]}; "
            "export once and copy that artifact to every host"
        )
    if record.dtype != identity.dtype:
        return f"computes in {record.dtype or '(unknown)'}, the pipeline in {identity.dtype}; give all the same dtype"
    return _range_refusal(record, identity) if record.role == "stage" else None


def _range_refusal(record: WorkerRecord, identity: PipelineIdentity) -> str | None:
    blocks = record.blocks
    if blocks is None or not 0 <= blocks.start < blocks.stop <= identity.num_layers:
        found = "no blocks" if blocks is None else f"blocks {blocks.start} to {blocks.stop}"
        return f"announces {found}; the model has blocks 0 to {identity.num_layers}"
    if record.num_layers != identity.num_layers:
        return f"believes in {record.num_layers} layers; the model has {identity.num_layers}"
    if record.kv_capacity_tokens < 1 or record.max_batch_tokens < 1:
        return "announces no room for keys and values, or no tokens per microbatch"
    return None


def choose_routes(workers: Iterable[StageInfo], num_layers: int, current: Collection[Route] = ()) -> tuple[Route, ...]:
    """Return the fewest routes found that use every worker which some route can use.

    Routes of `current` stay while all their workers are there and they are of use, since sessions live on them. Work
    and result are bounded by the number of workers; replicas are never multiplied out.
    """
    cover = _Cover(workers, num_layers)
    for route in current:
        if all(cover.has(worker) for worker in route.workers):
            cover.add(route.workers)
    cover.complete()
    return cover.without_redundant()


def missing_blocks(workers: Iterable[StageInfo], num_layers: int) -> tuple[BlockRange, ...]:
    """Return the block ranges that no worker holds, for the message that says why there is no route."""
    gaps = []
    covered = 0
    for worker in sorted(workers, key=lambda worker: worker.blocks.start):
        if worker.blocks.start > covered:
            gaps.append(BlockRange(start=covered, stop=worker.blocks.start))
        covered = max(covered, worker.blocks.stop)
    if covered < num_layers:
        gaps.append(BlockRange(start=covered, stop=num_layers))
    return tuple(gaps)


class _Cover:
    """Routes under construction, and how many of them use each worker."""

    def __init__(self, workers: Iterable[StageInfo], num_layers: int) -> None:
        self._num_layers = num_layers
        self._workers = _on_some_route(workers, num_layers)
        self._chains: list[tuple[StageInfo, ...]] = []
        self._uses: Counter[str] = Counter()

    def has(self, worker: StageInfo) -> bool:
        return worker in self._workers

    def add(self, chain: Sequence[StageInfo]) -> None:
        self._chains.append(tuple(chain))
        self._uses.update(worker.key for worker in chain)

    def complete(self) -> None:
        """Add a chain through every worker that has none, through the least used workers otherwise."""
        for worker in self._workers:
            if not self._uses[worker.key]:
                self.add([*self._back_from(worker), worker, *self._on_from(worker)])

    def without_redundant(self) -> tuple[Route, ...]:
        """Drop chains, the newest first, whose workers are all on another chain as well."""
        kept = list(self._chains)
        for chain in reversed(self._chains):
            if all(self._uses[worker.key] > 1 for worker in chain):
                kept.remove(chain)
                self._uses.subtract(worker.key for worker in chain)
        return tuple(Route(chain) for chain in kept)

    def _on_from(self, worker: StageInfo) -> list[StageInfo]:
        chain: list[StageInfo] = []
        stop = worker.blocks.stop
        while stop < self._num_layers:
            chain.append(self._least_used([other for other in self._workers if other.blocks.start == stop]))
            stop = chain[-1].blocks.stop
        return chain

    def _back_from(self, worker: StageInfo) -> list[StageInfo]:
        chain: list[StageInfo] = []
        start = worker.blocks.start
        while start > 0:
            chain.append(self._least_used([other for other in self._workers if other.blocks.stop == start]))
            start = chain[-1].blocks.start
        return chain[::-1]

    def _least_used(self, candidates: Sequence[StageInfo]) -> StageInfo:
        return min(candidates, key=lambda worker: (self._uses[worker.key], worker.name, worker.key))


def _on_some_route(workers: Iterable[StageInfo], num_layers: int) -> list[StageInfo]:
    """Return the workers that can be reached from block 0 and from which the end can be reached, sorted."""
    by_start = sorted(workers, key=lambda worker: (worker.blocks.start, worker.blocks.stop, worker.name, worker.key))
    starts, stops = {0}, {num_layers}
    for worker in by_start:
        if worker.blocks.start in starts:
            starts.add(worker.blocks.stop)
    for worker in sorted(by_start, key=lambda worker: -worker.blocks.stop):
        if worker.blocks.stop in stops:
            stops.add(worker.blocks.start)
    return [worker for worker in by_start if worker.blocks.start in starts and worker.blocks.stop in stops]
