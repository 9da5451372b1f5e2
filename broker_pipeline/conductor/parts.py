"""The parts list of one tenure: what there is, and what each part works with.

records, heartbeats ──► RosterWatch ──► Roster ──► Workers ──┐
                                                             ├──► Scheduler ◄── Dispatcher ◄──► stages
queue ──► JobPuller ──► JobRunner ──► GenerationBuilder      │                       │ tokens
                            │            └─► Preparer        │                       ▼
                            └────────────► Generations ──────┘         Generation ──► Committer ──► Redis
"""

from __future__ import annotations

import asyncio

from broker_pipeline import subjects
from broker_pipeline.conductor.dispatch.dispatcher import Dispatcher
from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.conductor.jobs.cancels import Cancels
from broker_pipeline.conductor.jobs.dead_letters import DeadLetters
from broker_pipeline.conductor.jobs.generation_builder import GenerationBuilder, PrepareTerms
from broker_pipeline.conductor.jobs.job_end import JobEnds, Stores
from broker_pipeline.conductor.jobs.job_puller import JobPuller
from broker_pipeline.conductor.jobs.job_run import JobRunner, RunLimits
from broker_pipeline.conductor.jobs.left_deliveries import LeftDeliveries
from broker_pipeline.conductor.jobs.live_job import LiveJobs
from broker_pipeline.conductor.jobs.other_shares import OtherShares
from broker_pipeline.conductor.jobs.tenant_weights import TenantWeights
from broker_pipeline.conductor.jobs.unqueued_jobs import UnqueuedJobs
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.conductor.surroundings import Surroundings, Term
from broker_pipeline.conductor.workers.preparer import Preparer
from broker_pipeline.conductor.workers.roster import Roster
from broker_pipeline.conductor.workers.roster_watch import RosterWatch
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.messages.control import Hello
from broker_pipeline.scheduling.policies.admission import Admission, Load
from broker_pipeline.scheduling.policies.fair_shares import FairShares
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.held_jobs import HeldJobs
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.publishing import JobPublisher

_EXPECTED_TOKENS = 1024
"""KV that the first jobs are expected to need, before there is one to learn from."""


class Parts:
    """What the conductor of a share consists of, in one epoch."""

    def __init__(self, around: Surroundings, term: Term, watchers: Watchers) -> None:
        """Wire everything; `watchers` outlasts the tenure."""
        self._around = around
        self._term = term
        transport, redis, settings, namespace = around.transport, around.redis, around.settings, around.common.namespace
        self._plan_due = asyncio.Event()
        self.scheduler = Scheduler(around.model.facts.num_layers, settings.scheduler_limits)
        self.generations = Generations(self.scheduler, self._plan_due, around.clock)
        self.workers = Workers(
            self.scheduler,
            self.generations,
            self._plan_due,
            around.clock,
            longest_silence_s=settings.roster_times.longest_silence_s,
        )
        self.live = LiveJobs()
        self.stores = Stores.open(transport, redis, namespace, watchers)
        self.committer = Committer(self.stores.jobs, self.stores.events, self.generations.refuse, around.clock)
        self.cancels = Cancels(transport, subjects.cancel(namespace), self.stores.jobs, self.live)
        self.queue = JobQueue(
            transport,
            namespace,
            ack_wait_s=settings.ack_wait_s,
            num_replicas=around.common.nats_replicas,
            on_unreadable=DeadLetters(self.stores).fail,
        )
        self.dispatcher = self._dispatcher()
        self.roster = Roster(self.workers, around.identity, settings.roster_times, around.clock)
        self.roster_watch = self._roster_watch()
        self.left = LeftDeliveries(
            transport, HeldJobs(redis, namespace), self.queue, term.share, term.epoch, term.taken
        )
        self.unqueued = UnqueuedJobs(self.stores, JobPublisher.open(self.queue, redis, namespace))
        self.weights = TenantWeights(GatewayKeys(redis, namespace))
        self.others = OtherShares(term.num_shares, around.clock)
        self.puller = self._puller()

    # --- stages and vision workers ----------------------------------------------------------------------------------

    def _dispatcher(self) -> Dispatcher:
        common, term, instance = self._around.common, self._term, self._around.instance
        builder = EnvelopeBuilder(
            pipeline=common.pipeline,
            fingerprint=self._around.model.facts.fingerprint,
            epoch=term.epoch,
            results=subjects.results(
                common.namespace, common.pipeline, f"{instance}-{term.share}" if term.share else instance
            ),
        )
        return Dispatcher(
            transport=self._around.transport,
            builder=builder,
            scheduler=self.scheduler,
            workers=self.workers,
            generations=self.generations,
            committer=self.committer,
            plan_due=self._plan_due,
            clock=self._around.clock,
        )

    def _roster_watch(self) -> RosterWatch:
        common = self._around.common
        return RosterWatch(
            roster=self.roster,
            transport=self._around.transport,
            registry=WorkerRegistry(self._around.redis, common.namespace, common.pipeline),
            share=self._term.share,
            hello=Hello(pipeline=common.pipeline, epoch=self._term.epoch),
            heartbeat_subject=subjects.heartbeats(common.namespace, common.pipeline),
            lost_peers_subject=subjects.lost_peers(common.namespace, common.pipeline),
            times=self._around.settings.roster_times,
        )

    # --- jobs -------------------------------------------------------------------------------------------------------

    def _puller(self) -> JobPuller:
        settings = self._around.settings
        admission = Admission(settings.admission_limits, _EXPECTED_TOKENS)
        runner = JobRunner(
            live=self.live,
            stores=self.stores,
            builder=self._generation_builder(admission),
            generations=self.generations,
            committer=self.committer,
            ends=JobEnds(self.live, self.stores, self.committer, self._around.model.facts),
            limits=RunLimits(
                max_deliveries=settings.max_deliveries,
                lease_held=self._term.lease_held,
                restarts=settings.on_other_model == "restart",
                share=self._term.share,
                epoch=self._term.epoch,
                fence=self._term.fence,
            ),
            others=self.others,
        )
        return JobPuller(
            queue=self.queue,
            live=self.live,
            runner=runner,
            admission=admission,
            load=self._load,
            retry_limits=settings.retry_limits,
            shares=FairShares(self.weights.of, self.scheduler.first_waiting),
        )

    def _generation_builder(self, admission: Admission) -> GenerationBuilder:
        around = self._around
        return GenerationBuilder(
            model=around.model,
            scheduler=self.scheduler,
            workers=self.workers,
            preparer=Preparer(around.transport, self.workers, around.model.facts.vocab_size),
            committer=self.committer,
            admission=admission,
            terms=PrepareTerms(
                pipeline=around.common.pipeline,
                epoch=self._term.epoch,
                timeout_s=around.settings.prepare_timeout_s,
                route_timeout_s=around.settings.route_timeout_s,
            ),
            copies_prefixes=around.settings.copy_prefixes,
        )

    def _load(self) -> Load:
        return Load(
            num_jobs=len(self.live),
            num_preparing=self.live.count("preparing") + self.live.count("recovering"),
            num_waiting=self.scheduler.num_unopened,
            num_vision_workers=self.workers.vision.num_usable,
            num_shares=self._term.num_shares(),
            num_routes=len(self.scheduler.routes.open_routes),
            room_tokens=self.scheduler.room(),
            kv_tokens=self.scheduler.longest_session(),
            can_commit=self.committer.is_reachable,
            others_go_first=self.others.go_first,
        )
