"""Runs a `LocalCluster` for a person: shows it, and turns signals into an end in order.

first SIGINT, SIGTERM or SIGHUP    give up the start, or the work, and stop everything in order
second                             kill everything
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from broker_pipeline import exit_codes
from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.process.host_room import look, shortages
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.local.preflight import needs_of
from broker_pipeline.tools.local.view import LiveView, PlainView
from broker_pipeline.tools.signals import handling_signals

_FATES = {
    "restart": "they begin again from token 0 with this one (--on-other-model fail would have them fail)",
    "fail": "they fail as model_changed (`broker-pipeline failed retry` has them begin again with this one)",
}

Work = Callable[[LocalCluster], Awaitable[None]]


class _ModelNote(msgspec.Struct, frozen=True):
    """Which artifact a data directory was last used with."""

    artifact: str
    fingerprint: str


async def run_cluster(settings: LocalSettings, view: PlainView | LiveView, work: Work) -> int:
    """Start a cluster, do `work` with it, stop it; returns the exit code.

    The end of `work`, a signal, or a program that can never run again ends the cluster; the last of these raises its
    `ServerStartError`.
    """
    run = _Run(view)
    with view.showing(), handling_signals(run.on_signal):
        cluster = LocalCluster(settings, on_change=view.on_change)
        run.working = asyncio.ensure_future(_start_and_work(cluster, view, work))
        await asyncio.wait({run.working})
        run.stopping = asyncio.ensure_future(cluster.destroy() if run.is_forced else cluster.stop())
        await asyncio.wait({run.stopping})
    if run.is_forced:
        return exit_codes.INTERRUPTED
    run.stopping.result()
    if not run.working.cancelled():
        run.working.result()
    return exit_codes.OK


class _Run:
    """The two phases of a run, and what a signal does in each."""

    def __init__(self, view: PlainView | LiveView) -> None:
        self.working: asyncio.Future[None] | None = None
        self.stopping: asyncio.Future[None] | None = None
        self._view = view
        self._num_signals = 0

    @property
    def is_forced(self) -> bool:
        return self._num_signals > 1

    def on_signal(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            self._view.say("stopping in order; once more to kill everything")
            if self.working is not None:
                self.working.cancel()
        elif self.stopping is not None:
            self.stopping.cancel()


async def _start_and_work(cluster: LocalCluster, view: PlainView | LiveView, work: Work) -> None:
    needs = needs_of(cluster.settings)
    for shortage in shortages(needs, look(needs)):
        view.warn(shortage)
    await cluster.start_servers()
    fingerprint = read_manifest(cluster.settings.model).fingerprint
    if before := _note_model(cluster.settings, fingerprint):
        view.warn(f"{cluster.settings.data_dir} was last used with another model, {before}; its results are kept")
    if num_jobs := await _count_other_models(cluster, fingerprint):
        view.warn(f"jobs under way that another model has begun: {num_jobs}; {_FATES[cluster.settings.on_other_model]}")
    await cluster.start_services()
    async with cluster.watched():
        await work(cluster)


def _note_model(settings: LocalSettings, fingerprint: str) -> str | None:
    """Leave a note of the model in the data directory; return that of another one that was there before."""
    path = settings.data_dir / "model.json"
    note = _ModelNote(str(settings.model), fingerprint)
    try:
        before = msgspec.json.decode(path.read_bytes(), type=_ModelNote)
    except (FileNotFoundError, msgspec.DecodeError):  # the second: a run that ended while it wrote
        before = note
    path.write_bytes(msgspec.json.encode(note))
    return before.artifact if before.fingerprint != note.fingerprint else None


async def _count_other_models(cluster: LocalCluster, fingerprint: str) -> int:
    """Return how many jobs have tokens of another model than this cluster's."""
    async with open_redis(cluster.redis_url) as redis:
        return await JobStore(redis, cluster.settings.namespace).count_other_models(fingerprint)
