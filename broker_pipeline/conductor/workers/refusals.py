"""Which workers fit this pipeline, and of each of the others why not, for all to see."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import structlog

from broker_pipeline.messages.status import RefusedWorker
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.scheduling.routes import PipelineIdentity, refusal_of

log = structlog.get_logger()


class Refusals:
    """Workers that announce themselves and are not used, by name and instance."""

    def __init__(self, identity: PipelineIdentity) -> None:
        """Take the dtype of the stage that was started first where `identity` has none."""
        self._identity = identity
        self._by_workers: dict[str, str] = {}
        self._refused: dict[tuple[str, str], RefusedWorker] = {}

    @property
    def refused(self) -> tuple[RefusedWorker, ...]:
        """All of them, as of the last look at the records."""
        return tuple(self._refused.values())

    def fitting(
        self,
        records: Collection[WorkerRecord],
        in_use: Collection[WorkerRecord],
        unreadable: Collection[RefusedWorker] = (),
    ) -> list[WorkerRecord]:
        """Return the records that fit those `in_use`, and note why the others, and the `unreadable`, do not."""
        # Instances are random, and others see them: whoever has one already, keeps it.
        has = {each.instance: each.worker for each in (*reversed([*records]), *in_use)}
        impostors = [each for each in records if has[each.instance] != each.worker]
        records = [each for each in records if has[each.instance] == each.worker]
        identity = self._with_dtype(records, in_use)
        reasons = {record.instance: refusal_of(record, identity) for record in records}
        self._by_workers = {key: reason for key, reason in self._by_workers.items() if key in reasons}
        before, self._refused = self._refused, {}
        for record in records:
            if reason := reasons[record.instance] or self._by_workers.get(record.instance):
                self._note(record, reason, is_known=(record.worker, record.instance) in before)
        for record in impostors:
            reason = f"{has[record.instance]} has its instance"
            self._note(record, reason, is_known=(record.worker, record.instance) in before)
        for worker in unreadable:
            self._show(worker, is_known=(worker.worker, worker.instance) in before)
        return [record for record in records if reasons[record.instance] is None]

    def note_refusing(self, record: WorkerRecord, reason: str) -> None:
        """Note that a worker, though it fits, refuses this conductor."""
        self._note(record, reason, is_known=record.instance in self._by_workers)
        self._by_workers[record.instance] = reason

    def has_refused(self, record: WorkerRecord) -> bool:
        """Return whether a worker refused this conductor, or did not answer it, when it was asked last."""
        return record.instance in self._by_workers

    def clear(self, record: WorkerRecord) -> None:
        """Forget that a worker refused this conductor: it does no more."""
        self._by_workers.pop(record.instance, None)
        self._refused.pop((record.worker, record.instance), None)

    def _note(self, record: WorkerRecord, reason: str, *, is_known: bool) -> None:
        refused = RefusedWorker(worker=record.worker, instance=record.instance, reason=reason)
        self._show(refused, is_known=is_known)

    def _show(self, refused: RefusedWorker, *, is_known: bool) -> None:
        self._refused[refused.worker, refused.instance] = refused
        if not is_known:
            log.warning("worker_refused", worker=refused.worker, instance=refused.instance, reason=refused.reason)

    def _with_dtype(self, records: Collection[WorkerRecord], in_use: Collection[WorkerRecord]) -> PipelineIdentity:
        if self._identity.dtype:
            return self._identity
        fitting = [
            record
            for record in sorted(records, key=lambda record: record.started_at)
            if refusal_of(record, replace(self._identity, dtype=record.dtype)) is None
        ]
        stages = (record for record in (*in_use, *fitting) if record.role == "stage")
        return replace(self._identity, dtype=next((record.dtype for record in stages), ""))
