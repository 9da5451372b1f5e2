"""Who is in the pipeline: conductors, workers, what is missing, and whether they and this host fit together."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline import __version__
from broker_pipeline.messages.gateway import PipelineStatus, QueueStatus
from broker_pipeline.messages.status import ConductorStatus, RefusedWorker
from broker_pipeline.messages.workers import COMPUTING_ROLES, WorkerRecord
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry, pipelines
from broker_pipeline.tools.doctor.finding import Finding, fail, ok, warn
from broker_pipeline.tools.operate.status_view import hints


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """What the registry holds."""

    namespace: str
    pipeline: str
    pipelines: tuple[str, ...]
    """Names of all pipelines of the namespace that have, or had, workers."""
    records: tuple[WorkerRecord, ...]
    unreadable: tuple[RefusedWorker, ...]
    conductor: ConductorStatus | None

    @property
    def workers(self) -> tuple[WorkerRecord, ...]:
        """Those that compute."""
        return tuple(record for record in self.records if record.role in COMPUTING_ROLES)


async def look_at_members(redis: RedisClient, namespace: str, pipeline: str) -> MemberFacts:
    """Read the registry; raises `StateError` where Redis does not answer."""
    registry = WorkerRegistry(redis, namespace, pipeline)
    found = await registry.registered()
    names = await pipelines(redis, namespace)
    status = await registry.conductor_status()
    return MemberFacts(namespace, pipeline, tuple(names), tuple(found.records), tuple(found.unreadable), status)


def judge_members(facts: MemberFacts) -> list[Finding]:
    """Say who is there, and what the pipeline lacks."""
    where = f"namespace {facts.namespace}, pipeline {facts.pipeline}"
    if facts.conductor is None and not facts.records:
        others = ", ".join(facts.pipelines) or "none"
        return [
            warn(
                "members",
                f"{where}: nobody is there (pipelines seen: {others})",
                "start conductor and workers, or correct --namespace and --pipeline",
            )
        ]
    count = len(facts.workers)
    seen = "a conductor" if facts.conductor is not None else "no conductor"
    status = PipelineStatus(
        pipeline=facts.pipeline,
        workers=facts.workers,
        conductor=facts.conductor,
        queue=QueueStatus(num_waiting=0, num_in_progress=0),
        jobs={},
    )
    found = [warn("members", hint, "`broker-pipeline status` shows all of it") for hint in hints(status)]
    return [ok("members", f"{where}: {seen}, workers: {count}"), *found]


def judge_versions(facts: MemberFacts) -> list[Finding]:
    """Compare the release of this host with those of others."""
    others = sorted({record.version for record in facts.records} - {__version__, ""})
    found = [
        fail("versions", f"{each.worker}: {each.reason}", "give all hosts one release") for each in facts.unreadable
    ]
    if others:
        of = {version: [each.worker for each in facts.records if each.version == version] for version in others}
        said = "; ".join(f"{version} on {', '.join(workers)}" for version, workers in of.items())
        remedy = "fine while hosts are upgraded one by one; then give all one release"
        found.append(warn("versions", f"this host has {__version__}, others: {said}", remedy))
    return found or [ok("versions", f"{__version__}, as all others ({len(facts.records)})")]


def judge_model(facts: MemberFacts, fingerprint: str) -> Finding:
    """Compare this host's artifact with the one that is served."""
    served = {facts.conductor.fingerprint} if facts.conductor is not None else set()
    served |= {record.fingerprint for record in facts.workers}
    served -= {""}
    if not served or served == {fingerprint}:
        whose = "as the pipeline's" if served else "and nobody serves yet"
        return ok("model", f"fingerprint {fingerprint[:12]}, {whose}")
    shown = ", ".join(sorted(each[:12] for each in served))
    remedy = "fetch the artifact that the others have, or start all of them with this one"
    return fail("model", f"this host's artifact is {fingerprint[:12]}, the pipeline's {shown}", remedy)
