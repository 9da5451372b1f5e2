"""Anything may stand in any of our keys: whose row it is ends or is hidden with a reason, and everybody else is served.

A gateway, a conductor and workers run all the time. For each key of the schema, each kind of garbage is written there;
then a job of somebody else has to succeed, lists and status have to be answered, and little may be logged.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from broker_pipeline import redis_keys, subjects
from broker_pipeline.config import CommonSettings
from broker_pipeline.messages.jobs import FINAL_STATUSES
from broker_pipeline.storage.media_objects import NUM_STREAMS
from gateway.app import serving
from gateway.settings import MIB, GatewaySettings
from gateway.wiring import open_gateway
from tests.kit.acting.conductor_bench import Bench, open_bench
from tests.kit.pictures import picture
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

RANDOM = bytes(range(0x80, 0xC0)) + b"\x00%1%%s\n"
HUGE = b"1" + b"0" * 30
MAX_LINES = 15
"""Warnings and errors for one piece of garbage: it is said, and not again and again."""


def garbage_for(valid: bytes) -> dict[str, bytes]:
    """What may stand where `valid` text should."""
    more = valid[:-1] + b', "from_the_next_release": 1}' if valid.endswith(b"}") else valid + b" and more"
    return {
        "empty": b"",
        "truncated": valid[: len(valid) // 2],
        "random": RANDOM,
        "wrong_shape": b'[{"a": 1}]',
        "one_more_field": more,
        "out_of_range": HUGE,
    }


@dataclass(frozen=True)
class System:
    """A running pipeline, and a client of its gateway."""

    bench: Bench
    http: aiohttp.ClientSession

    @property
    def ns(self) -> str:
        return self.bench.namespace

    async def submit(self, content: bytes | None = None, max_tokens: int = 5, key: str = "") -> str:
        body: dict[str, Any] = {"prompt": "Hello.", "sampling": {"max_tokens": max_tokens, "ignore_eos": True}}
        if content is not None:
            body["images"] = [f"data:image/png;base64,{base64.b64encode(content).decode()}"]
        headers = {"Idempotency-Key": key} if key else {}
        async with self.http.post("/v1/jobs", json=body, headers=headers) as answer:
            said = await answer.json()
            assert answer.status in (200, 202), said
            return str(said["job_id"])

    async def get(self, path: str) -> dict[str, Any]:
        async with self.http.get(path) as answer:
            said = await answer.json()
            assert answer.status == 200, said
            return dict(said)

    async def check_others(self) -> None:
        """Somebody else's job succeeds; lists and status are answered."""
        job_id = await self.submit()
        async with asyncio.timeout(20):
            while (record := await self.get(f"/v1/jobs/{job_id}?wait_s=5"))["status"] not in FINAL_STATUSES:
                pass
        assert record["status"] == "succeeded", record
        listed = await self.get("/v1/jobs?limit=40")
        assert job_id in {job["job_id"] for job in listed["jobs"]}
        for status in ("queued", "running", "succeeded", "failed"):
            await self.get(f"/v1/jobs?status={status}&limit=2")
        assert (await self.get("/v1/status"))["queue"]["num_waiting"] == 0

    async def is_over(self, job_id: str) -> bool:
        """Whether a job has ended, or is hidden from lists, counted and answered for with a typed error."""
        async with self.http.get(f"/v1/jobs/{job_id}") as answer:
            said = await answer.json()
        if answer.status == 200 and said["status"] in FINAL_STATUSES:
            return said["status"] != "failed" or said["error"]["code"] == "garbled_state"
        if answer.status != 500:
            return False
        assert (said["error"]["code"], said["error"]["retryable"]) == ("garbled_state", False)
        listed = await self.get("/v1/jobs?limit=40")
        return bool(listed["num_unreadable"]) and job_id not in {job["job_id"] for job in listed["jobs"]}

    async def replace(self, key: str, value: bytes) -> None:
        """Put a string there, whatever stood there before."""
        await self.bench.redis.set(key, value)

    async def put_list(self, key: str) -> None:
        """Put something of another type there."""
        await self.bench.redis.delete(key)
        await self.bench.redis.rpush(key, RANDOM, b"no such thing")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(nats_url: str, redis_url: str) -> AsyncIterator[System]:
    namespace = f"t{uuid.uuid4().hex[:12]}"
    common = CommonSettings(nats_url=nats_url, redis_url=redis_url, namespace=namespace, drain_s=1.0)
    settings = GatewaySettings(common=common, port=0, queue_max_bytes=8 * MIB, media_max_bytes=32 * MIB)
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(open_bench(nats_url, redis_url, namespace))
        gateway = await stack.enter_async_context(open_gateway(settings, stopping))
        url = await stack.enter_async_context(serving(gateway))
        http = await stack.enter_async_context(aiohttp.ClientSession(base_url=url))
        stack.callback(stopping.set)
        await bench.stage("a", 0, 6, step_s=0.004)
        await bench.vision()
        bench.conductor(lease_ttl_s=1.0)
        await bench.status(lambda status: bool(status.routes and status.vision))
        yield System(bench, http)
        await bench.stop_all()
        media = (subjects.media_stream(namespace, shard) for shard in range(NUM_STREAMS))
        for stream in (subjects.job_stream(namespace), *media):
            await bench.transport.jetstream().delete_stream(stream)


async def corrupted(system: System, corrupt: Awaitable[None], name: str, max_lines: int = MAX_LINES) -> None:
    """Corrupt something, check that everybody else is served, and that this is not said for ever."""
    with capture_logs() as lines:
        await corrupt
        await system.check_others()
    loud = [line for line in lines if line["log_level"] in ("warning", "error", "critical")]
    assert len(loud) <= max_lines, (name, loud)
    assert not [line for line in lines if line["event"] in ("job_crashed", "request_crashed")], (name, lines)


# --- keys that all rows share ---------------------------------------------------------------------------------------

INDEXES: dict[str, Callable[[str], str]] = {
    "jobs": redis_keys.jobs,
    "jobs_with_status": lambda ns: redis_keys.jobs_with_status(ns, "queued"),
    "expiry": redis_keys.expiry,
    "unpublished": redis_keys.unpublished,
    "media_unreferenced": redis_keys.media_unreferenced,
    "media_kept": redis_keys.media_kept,
    "media_acquired": redis_keys.media_acquired,
    "media_doomed": redis_keys.media_doomed,
    "workers": lambda ns: redis_keys.workers(ns, "main"),
    "pipelines": redis_keys.pipelines,
    "counts": redis_keys.counts,
}


@pytest.mark.parametrize("name", INDEXES)
async def test_a_garbled_index(system: System, name: str) -> None:
    key, redis = INDEXES[name](system.ns), system.bench.redis
    await system.submit(picture(1), max_tokens=3)

    async def add_strange_rows() -> None:
        kind = await redis.type(key)
        if name in ("workers", "pipelines"):
            await redis.sadd(key, RANDOM, b"", HUGE)
        elif name == "counts":
            await redis.hset(key, mapping={"succeeded": RANDOM, "failed": HUGE, RANDOM: b"1"})  # type: ignore[dict-item]
        else:
            assert kind in (b"zset", b"none")
            await redis.zadd(key, {RANDOM: 0, b"": 1, b"no such job": 2, HUGE: "inf", b"a b": "-inf"})  # type: ignore[dict-item]

    await corrupted(system, add_strange_rows(), "strange rows")
    await corrupted(system, system.put_list(key), "a list")
    await corrupted(system, system.replace(key, RANDOM), "a string")
    picture_of_another = await system.submit(picture(2), max_tokens=3)
    await eventually(lambda: system.is_over(picture_of_another))


# --- rows of jobs ---------------------------------------------------------------------------------------------------

JOB_FIELDS = {
    "status": b"running",
    "created_at": b"1700000000.5",
    "started_at": b"1700000000.5",
    "attempt": b"1",
    "metadata": b'{"name": "a"}',
    "num_retries": b"0",
    "spec": b'{"job_id": "a"}',
    "fingerprint": b"ab",
    "first_attempt": b"1",
    "failures": b'{"status":"failed","attempt":1,"finished_at":1}',
    "result": b'{"text":"a"}',
    "error": b'{"code":"a","message":"b"}',
    "cancel": b"1",
    "idempotency": b"",
}


Corrupt = Callable[[str], Awaitable[Any]]
"""Garbles something of the job with this id."""


@pytest.mark.parametrize("field", JOB_FIELDS)
async def test_a_garbled_field_of_a_job_that_runs(system: System, field: str) -> None:
    def writing(value: bytes) -> Corrupt:
        return lambda job_id: system.bench.redis.hset(redis_keys.job(system.ns, job_id), field, value)  # type: ignore[arg-type, return-value]

    await check_running_jobs(system, {kind: writing(value) for kind, value in garbage_for(JOB_FIELDS[field]).items()})


async def test_a_job_of_another_type(system: System) -> None:
    def key(job_id: str) -> str:
        return redis_keys.job(system.ns, job_id)

    corrupts = {
        "list": lambda job_id: system.put_list(key(job_id)),
        "text": lambda job_id: system.replace(key(job_id), RANDOM),
    }
    await check_running_jobs(system, corrupts)


async def test_garbled_tokens(system: System) -> None:
    redis = system.bench.redis

    def key(job_id: str) -> str:
        return redis_keys.job_tokens(system.ns, job_id)

    def adding(value: bytes) -> Corrupt:
        return lambda job_id: redis.rpush(key(job_id), value)  # type: ignore[return-value]

    def setting(value: bytes) -> Corrupt:
        return lambda job_id: redis.lset(key(job_id), 0, value)  # type: ignore[arg-type, return-value]

    kinds = garbage_for(b'{"token_id":5,"text":"a"}')
    strange = b'{"token_id":2147483647}', b'{"token_id":5,"choice":1099511627776}', b'{"token_id":5}'
    await check_running_jobs(
        system,
        {"text": lambda job_id: system.replace(key(job_id), RANDOM), "gone": lambda job_id: redis.delete(key(job_id))},
    )
    await check_running_jobs(system, {f"{kind} more": adding(value) for kind, value in kinds.items()})
    await check_running_jobs(system, {f"{kind} set": setting(value) for kind, value in kinds.items()})
    await check_running_jobs(system, {f"{value!r} more": adding(value) for value in strange})


async def check_running_jobs(system: System, corrupts: dict[str, Corrupt]) -> None:
    """Garble the rows of jobs that run, each its own way: they end or are hidden, and nobody else is."""
    job_ids = {what: await system.submit(max_tokens=40) for what in corrupts}
    await system.bench.progress(list(job_ids.values()), 1)

    async def garble() -> None:
        for what, corrupt in corrupts.items():
            await corrupt(job_ids[what])

    await corrupted(system, garble(), " ".join(corrupts), max_lines=MAX_LINES * len(corrupts))
    for what, job_id in job_ids.items():
        try:
            await eventually(lambda job_id=job_id: system.is_over(job_id))  # type: ignore[misc]
        except TimeoutError:
            async with system.http.get(f"/v1/jobs/{job_id}") as answer:
                pytest.fail(f"{what}: {answer.status} {await answer.text()}")


# --- rows of media, workers and conductors ----------------------------------------------------------------------------


async def test_garbled_media(system: System) -> None:
    redis, ns = system.bench.redis, system.ns
    content = picture(3)
    first = await system.submit(content, max_tokens=3)
    [ref] = (await system.bench.store.spec(first)).media()
    for kind, value in garbage_for(ref.object_name.encode()).items():
        await corrupted(system, system.replace(redis_keys.media(ns, ref.sha256), value), kind)
        again = await system.submit(content, max_tokens=3)
        await eventually(lambda again=again: system.is_over(again))  # type: ignore[misc]
        assert (await system.bench.store.get(again)).status == "succeeded", kind
    for key in (redis_keys.media(ns, ref.sha256), redis_keys.media_jobs(ns, ref.sha256)):
        await corrupted(system, system.put_list(key), "a list")
        await system.bench.wait([await system.submit(content, max_tokens=3)])
    await redis.sadd(redis_keys.media_jobs(ns, ref.sha256), RANDOM)
    await system.bench.wait([await system.submit(content, max_tokens=3)])


async def test_a_garbled_idempotency_key(system: System) -> None:
    key = redis_keys.idempotency(system.ns, "k")
    for kind, value in garbage_for(b"0123456789abcdef").items():
        await corrupted(system, system.replace(key, value), kind)
        await system.bench.wait([await system.submit(key="k")])
    await corrupted(system, system.put_list(key), "a list")
    await system.bench.wait([job_id := await system.submit(key="k")])
    assert await system.submit(key="k") == job_id, "and from then on it is known"


async def test_a_garbled_lease_and_epoch(system: System) -> None:
    redis, ns = system.bench.redis, system.ns
    lease, epoch = redis_keys.lease(ns, "main"), redis_keys.epoch(ns, "main")

    async def tenure_with(value: bytes | None) -> None:
        await (system.put_list(epoch) if value is None else system.replace(epoch, value))
        await redis.delete(lease)

    epochs = []
    for kind, value in {**garbage_for(b"176000000000"), "a list": None}.items():
        await corrupted(system, tenure_with(value), kind)
        epochs.append(await _epoch(redis, epoch))
    assert epochs == sorted(set(epochs)), "each tenure's exceeds all before"
    for kind, value in {"random": RANDOM, "empty": b""}.items():
        await corrupted(system, system.replace(lease, value), kind)  # which would never run out
    await corrupted(system, system.put_list(lease), "a list")


async def _epoch(redis: Any, key: str) -> int:
    async with asyncio.timeout(20):
        while not (text := await _text(redis, key)).isdigit() or not 10**11 < int(text) < 2**40:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return int(text)


async def _text(redis: Any, key: str) -> bytes:
    return (await redis.get(key) or b"") if await redis.type(key) == b"string" else b""


async def _holds(redis: Any, key: str, instance: str) -> bool:
    return instance.encode() in await _text(redis, key)


async def test_garbled_records_of_workers_are_shown_as_refused(system: System) -> None:
    redis, ns, bench = system.bench.redis, system.ns, system.bench
    async with asyncio.timeout(20):
        while (valid := await redis.get(redis_keys.worker(ns, "main", "a"))) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    rows: dict[str, bytes] = {kind: value for kind, value in garbage_for(valid).items() if kind != "one_more_field"}
    rows["stolen"] = valid
    rows["next_contract"] = b'{"worker":"next_contract","instance":"i-9","contract":99,"version":"9.0","blocks":"all"}'

    async def write() -> None:
        for name, value in rows.items():
            await redis.set(redis_keys.worker(ns, "main", name), value, ex=60)
        await system.put_list(redis_keys.worker(ns, "main", "list"))
        await redis.sadd(redis_keys.workers(ns, "main"), *rows, "list")  # last: names without a row leave the set

    await corrupted(system, write(), "records")
    expected = {*rows, "list"}
    status = await bench.status(lambda status: expected <= {refused.worker for refused in status.refused})
    reasons = {refused.worker: refused.reason for refused in status.refused}
    assert reasons.keys() == expected
    assert reasons["next_contract"] == "9.0 speaks contract 99, this pipeline 3"
    assert reasons["stolen"] == "its record is of a"
    assert all("cannot be read" in reasons[name] for name in ("empty", "truncated", "random", "wrong_shape", "list"))
    assert [stage.worker for stage in status.stages] == ["a"]
    await redis.set(redis_keys.worker(ns, "main", "a"), RANDOM, keepttl=True)  # until it renews
    await eventually(lambda: _is(redis, redis_keys.worker(ns, "main", "a"), valid))
    of_conductor = redis_keys.conductor(ns, "main", f"conductor-{status.instance}")
    await redis.set(of_conductor, RANDOM, keepttl=True)
    await eventually(lambda: _holds(redis, of_conductor, status.instance))


async def _is(redis: Any, key: str, value: bytes) -> bool:
    return bool(await redis.get(key) == value)


async def test_garbled_status_and_probe(system: System) -> None:
    for key in (redis_keys.status(system.ns, "main"), redis_keys.probe(system.ns)):
        for kind, value in garbage_for(b'{"instance": "a"}').items():
            await corrupted(system, system.replace(key, value), kind)
        await corrupted(system, system.put_list(key), "a list")
    await eventually(lambda: _is_ready(system))


async def _is_ready(system: System) -> bool:
    async with system.http.get("/readyz") as answer:
        return answer.status == 200


@pytest.mark.parametrize(
    "key",
    [
        *(redis_keys.batches_turns, redis_keys.batches_carried, redis_keys.batches_active),
        *(redis_keys.batches_expiry, redis_keys.batches_untold),
        *(redis_keys.files_doomed, redis_keys.files_expiry),
        *(partial(of, tenant="") for of in (redis_keys.batches, redis_keys.batches_waiting, redis_keys.files)),
        partial(redis_keys.tenant_jobs, tenant="somebody"),
        *(
            partial(of, batch_id="batch_1")
            for of in (redis_keys.batch, redis_keys.batch_done, redis_keys.batch_offsets)
        ),
        *(partial(of, file_id="file-1") for of in (redis_keys.file, redis_keys.file_parts)),
        partial(redis_keys.batch_key, key="k"),
        partial(redis_keys.rates, pipeline="main"),
        partial(redis_keys.thumbnail, sha256="0" * 64),
        redis_keys.thumbnails,
        *(partial(of, key_hash="0" * 64) for of in (redis_keys.limits, redis_keys.limits_parallel)),
    ],
    ids=lambda key: getattr(key, "func", key).__name__,
)
async def test_keys_of_files_batches_access_and_the_page(system: System, key: Callable[[str], str]) -> None:
    """Whatever stands there, jobs that have nothing to do with it run."""
    await corrupted(system, system.replace(key(system.ns), RANDOM), "random")
    await corrupted(system, system.put_list(key(system.ns)), "a list")
    await system.bench.redis.delete(key(system.ns))


async def test_garbled_keys_to_the_gateway_let_nobody_in(system: System) -> None:
    async def status() -> int:
        async with system.http.get("/v1/jobs") as answer:
            return answer.status

    async def is_closed() -> bool:
        return await status() == 500

    async def is_open() -> bool:
        return await status() == 200

    await system.put_list(redis_keys.gateway_keys(system.ns))
    await eventually(is_closed)
    await system.bench.redis.delete(redis_keys.gateway_keys(system.ns))
    await eventually(is_open)


async def test_every_key_of_the_schema_is_garbled_here() -> None:
    source = inspect.getsource(inspect.getmodule(test_garbled_media))  # type: ignore[arg-type]
    keys = [name for name, _ in inspect.getmembers(redis_keys, inspect.isfunction)]
    assert [name for name in keys if name[0] != "_" and f"redis_keys.{name}" not in source] == []
