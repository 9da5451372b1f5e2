"""The doctor with a host's secrets, on servers that let in whom they name: it asks what the host's roles may."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker_pipeline import subjects
from broker_pipeline.errors import CertificateError
from broker_pipeline.messages.workers import CertificateRecord, WorkerRecord
from broker_pipeline.security.roles import Role
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.tools.doctor.checks import DoctorSettings, checks_of
from broker_pipeline.tools.doctor.examination import examine
from broker_pipeline.tools.doctor.secrets import judge_certificate, judge_ends, look_at_certificate
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.transport import Transport
from tests.broker_pipeline.security.conftest import HOST, NAMESPACE, OTHER, Guarded
from tests.kit.findings import levels


def only(guarded: Guarded, directory: Path, role: Role) -> str:
    """Return a copy of the host's folder with the secrets of one role."""
    copy = Path(shutil.copytree(guarded.directory.host_folder(HOST), directory / role))
    for path in (*copy.glob("*.nk"), *copy.glob("*.redis")):
        if path.stem != role:
            path.unlink()
    return str(copy)


@pytest.mark.parametrize("role", ["gateway", "stage", "operator"])
async def test_the_doctor_asks_what_the_host_may(guarded: Guarded, tmp_path: Path, role: Role) -> None:
    theirs = guarded.credentials("stage", OTHER)
    worker = f"{OTHER}_stage-0"
    root = subjects.worker_root(NAMESPACE, "main", "stage", worker, "1")
    record = WorkerRecord(worker=worker, instance="1", role="stage", pipeline="main", subject=root, host=OTHER)
    settings = DoctorSettings(
        nats_url=guarded.nats.url,
        redis_url=guarded.redis.url,
        secrets=only(guarded, tmp_path, role),
        device="cpu",
        edges="tcp",
    )
    async with (
        open_redis(guarded.redis.url, credentials=theirs) as redis,
        Transport.open(guarded.nats.url, name="stage", credentials=theirs) as transport,
        transport.use_edges(root, EdgeSettings("tcp", identity=theirs.tls)),
    ):
        registry = WorkerRegistry(redis, NAMESPACE, "main", ttl_s=60)
        await registry.register(record)
        async with checks_of(settings) as checks:
            found = await examine(checks)
        await registry.release(record)
    shown = levels(found)
    well = {"broker", "max_payload", "redis memory", "clock", "certificate"}
    assert {check: level for check, level in shown.items() if check in well} == dict.fromkeys(well, "ok"), found
    unseen = {"jetstream", "redis file", "edges"} | (set() if role == "gateway" else {"redis", "members", "versions"})
    assert {check for check, level in shown.items() if level == "unseen"} == unseen, found
    assert all("this credential may not" in finding.found for finding in found if finding.level == "unseen"), found
    assert "fail" not in shown.values()
    seen = any("workers: 1" in finding.found for finding in found)
    assert seen == (role == "gateway"), "others may not list workers"


def test_a_certificate_is_judged_by_its_end(guarded: Guarded) -> None:
    folder, now = guarded.directory.host_folder(HOST), datetime.now(UTC)
    certificate = look_at_certificate(folder, now)
    assert judge_certificate(certificate, now).level == "ok"
    soon = judge_certificate(certificate, certificate.ends_at - timedelta(days=3))
    assert (soon.level, f"rotate DIR {HOST}" in soon.remedy) == ("warn", True)
    with pytest.raises(CertificateError, match="ended on"):
        look_at_certificate(folder, certificate.ends_at)
    shown = CertificateRecord(host=OTHER, fingerprint="a" * 64, ends_at=(now + timedelta(days=5)).timestamp())
    other = WorkerRecord(worker="w", instance="1", role="stage", pipeline="main", subject="s", certificate=shown)
    [ends] = judge_ends([other, other], now)
    assert OTHER in ends.found
