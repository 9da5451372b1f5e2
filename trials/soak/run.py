"""One soak from the first process to the last proof.

right answers ──► cluster up ──► jobs at a steady pace ║ faults at random ──► all ended, all back ──► proofs ──► stop
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.local.supervisor import SupervisedProgram
from trials.soak.faults import shared_memory
from trials.soak.faults.injector import FaultInjector, InjectedFault
from trials.soak.faults.network import Network
from trials.soak.faults.plan import FaultKind, plan_faults
from trials.soak.faults.scene import Scene, others, places_for
from trials.soak.proof.client import ClientCounts, SoakClient
from trials.soak.proof.job_batch import JobBatch
from trials.soak.proof.leftovers import adopt_orphans, living_descendants
from trials.soak.proof.proofs import Proof, proof_of_none, prove
from trials.soak.proof.questions import Question
from trials.soak.proof.reference import Examination, set_examination
from trials.soak.proof.timeline import Timelines
from trials.soak.proof.witness import Witness
from trials.soak.report import FaultReport, SoakReport, percentiles
from trials.soak.system import components

_CRASHED = "exit status 70"
_PROGRESS_S = 5.0
_LEAK_GRACE_S = 5.0
_READY_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakSettings:
    """How much, how hard, and from which seed."""

    num_jobs: int
    kinds: tuple[FaultKind, ...]
    seed: int
    fault_every_s: float = 5.0
    num_faults: int = 0
    """At least so many faults are made, and the jobs are spread over the time that these take."""
    together: float = 0.0
    """Share of the faults that come together with the one before."""
    num_in_flight: int = 32
    targets: tuple[str, ...] | None = None
    """Components that faults may hit; None: all."""

    @property
    def job_every_s(self) -> float:
        """Seconds between two submissions; 0: as soon as there is room in flight."""
        return self.num_faults * self.fault_every_s / self.num_jobs


class Soak:
    """One run. `say` is told, line by line, what happens."""

    def __init__(self, system: LocalSettings, settings: SoakSettings, say: Callable[[str], None]) -> None:
        """Prepare a run of a system; `say` is told, line by line, what happens."""
        self._system = system
        self._components = components(system)
        self._settings = settings
        self._say = say
        self._timelines = Timelines()
        self._jobs = JobBatch()
        self._crashes: list[str] = []
        self._are_jobs_done = False
        self._began = 0.0
        self._seconds = 0.0

    async def run(self) -> SoakReport:
        """Do all of it; raises `ServerStartError` when the pipeline could not be brought up."""
        adopt_orphans()
        settings, system = self._settings, self._system
        examination = await set_examination(
            system.model,
            system.data_dir / "exam",
            seed=settings.seed,
            num_jobs=settings.num_jobs,
            exact_on=system.device if system.is_deterministic else None,
            say=self._say,
        )
        async with AsyncExitStack() as stack:
            if "shm" in settings.kinds:
                shared_memory.make_own()
            network, directory = None, system.data_dir / "faults"
            if "partition" in settings.kinds:
                network = await stack.enter_async_context(Network(self._components))
            places = places_for(self._components, settings.kinds, network, directory)
            system = replace(system, is_insecure=network is not None)  # its own hosts reach it, nobody else
            cluster = LocalCluster(system, places=places, on_change=self._on_change)
            self._say(f"starting {len(self._components)} programs")
            async with cluster:
                proofs, injector, counts = await self._disturb(Scene(cluster, network, directory), examination)
                self._say("stopping")
            proofs.append(await self._leak_proof())
        return self._report(cluster, injector, proofs, counts)

    async def _disturb(self, scene: Scene, examination: Examination) -> tuple[list[Proof], FaultInjector, ClientCounts]:
        injector, cluster = FaultInjector(scene, on_change=self._on_fault), scene.cluster
        async with (
            Witness.open(cluster) as witness,
            SoakClient.open(cluster.gateway_urls, examination.pictures, run=secrets.token_hex(4)) as client,
        ):
            self._say(f"{self._settings.num_jobs} jobs through {', '.join(cluster.gateway_urls)}")
            self._began = time.monotonic()
            async with _together(cluster.wait_failed(), witness.follow(), witness.leftovers.listen(), self._tell()):
                await self._jobs_and_faults(client, injector, examination.questions)
                self._seconds = time.monotonic() - self._began
                self._say("all jobs have ended; waiting until every component is back")
                stuck = await _not_back(cluster)
                proofs = [
                    *prove(await witness.evidence(examination, self._jobs)),
                    *await witness.leftovers.prove(len(self._system.stages)),
                ]
        self._timelines = witness.timelines
        proofs += [
            proof_of_none("every component came back", stuck, num_checked=len(self._components)),
            proof_of_none("no service crashed", self._crashes, num_checked=len(self._system.services)),
            self._enough_faults(injector),
        ]
        return proofs, injector, client.counts

    async def _jobs_and_faults(
        self, client: SoakClient, injector: FaultInjector, questions: Sequence[Question]
    ) -> None:
        settings = self._settings
        faults = plan_faults(
            settings.seed,
            settings.targets or self._components,
            settings.kinds,
            every_s=settings.fault_every_s,
            together=settings.together,
            spared=[name for name in self._components if not others(self._system, name)],
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(injector.run(faults, lambda: self._is_enough(injector)))
            await self._jobs.run(client, questions, num_in_flight=settings.num_in_flight, every_s=settings.job_every_s)
            self._are_jobs_done = True

    def _is_enough(self, injector: FaultInjector) -> bool:
        return self._are_jobs_done and len(injector.injected) >= self._settings.num_faults

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            self._say(f"{self._jobs.num_ended} of {self._settings.num_jobs} jobs have ended")

    async def _leak_proof(self) -> Proof:
        deadline = time.monotonic() + _LEAK_GRACE_S
        while (left := living_descendants()) and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)
        return proof_of_none("no process is left", left, num_checked=len(self._components))

    def _enough_faults(self, injector: FaultInjector) -> Proof:
        wanted, made = self._settings.num_faults, len(injector.injected)
        short = [f"{made} of {wanted} faults were made"] if made < wanted else []
        failed = [
            f"fault {done.fault.number} on {done.fault.target}: {done.problem}"
            for done in injector.injected
            if done.problem
        ]
        return proof_of_none("the faults were made, and every target recovered", short + failed, num_checked=made)

    def _on_change(self, program: SupervisedProgram) -> None:
        if program.state in {"restarting", "failed", "dead"}:
            self._say(f"    {program.name} {program.state}: {program.detail.splitlines()[0] if program.detail else ''}")
            if program.state == "restarting" and _CRASHED in program.detail.partition(";")[0]:
                self._crashes.append(f"{program.name}: {program.detail} (see {program.log_path})")

    def _on_fault(self, done: InjectedFault) -> None:
        fault = done.fault
        if done.problem is not None:
            self._say(f"fault {fault.number}: {fault.target} did not come back: {done.problem}")
        elif done.back_s is not None:
            self._say(f"fault {fault.number}: {fault.target} is back after {done.back_s:.1f} s")
        else:
            away = f" for {fault.away_s:.1f} s" if fault.away_s else ""
            self._say(f"fault {fault.number}: {fault.kind} {fault.target} (pid {done.pid}){away}")

    def _report(
        self, cluster: LocalCluster, injector: FaultInjector, proofs: list[Proof], counts: ClientCounts
    ) -> SoakReport:
        records = [submission.record for submission in self._jobs.submissions]
        attempts = [record.attempt for record in records]
        return SoakReport(
            is_proven=all(proof.holds for proof in proofs),
            seed=self._settings.seed,
            num_jobs=self._settings.num_jobs,
            num_stages=len(set(self._system.stages)),
            kinds=self._settings.kinds,
            seconds=round(self._seconds, 3),
            num_tokens=sum(record.result.usage.num_output_tokens for record in records if record.result),
            num_retried=sum(attempt > 1 for attempt in attempts),
            most_attempts=max(attempts, default=0),
            client=counts,
            restarts={name: program.num_restarts for name, program in cluster.processes.items()},
            faults=tuple(self._fault_report(done) for done in injector.injected),
            proofs=tuple(proofs),
            job_seconds=percentiles([submission.seconds for submission in self._jobs.submissions]),
        )

    def _fault_report(self, done: InjectedFault) -> FaultReport:
        felt = self._timelines.recovery(done.at)
        return FaultReport(
            number=done.fault.number,
            at_s=round(done.at - self._began, 3),
            target=done.fault.target,
            kind=done.fault.kind,
            away_s=round(done.fault.away_s, 3),
            back_s=_rounded(done.back_s),
            num_under_way=felt.num_under_way,
            first_token_s=_rounded(felt.first_token_s),
            all_moving_s=_rounded(felt.all_moving_s),
            problem=done.problem,
        )


@asynccontextmanager
async def _together(*watches: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run coroutines alongside the body; the first that fails ends all, and they end with the body."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(watch) for watch in watches]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


async def _not_back(cluster: LocalCluster) -> list[str]:
    try:
        await cluster.until_ready(_READY_TIMEOUT_S)
    except ServerStartError as error:
        return [error.message]
    return []


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
