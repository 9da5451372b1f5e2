"""Worker services as processes: start, ready, drain, signals, exit codes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import torch

from broker_pipeline import exit_codes, subjects
from broker_pipeline.errors import ContractError
from broker_pipeline.messages.activation import Envelope, MicrobatchResult, Segment, SessionClose, SessionOpen
from broker_pipeline.messages.control import DrainReply, DrainRequest, Hello, HelloReply
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.process.memory_limit import RUNTIME_BYTES
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.wire.transport import Transport
from stages.worker.tensors import to_wire
from tests.kit.hosts.memory_limits import inside, memory_limit, needs_memory_limits
from tests.kit.models.tiny_artifacts import tiny_artifact
from trials.bench.cpu_time import cpu_seconds

PROGRAM = (sys.executable, "-m", "broker_pipeline")
TELLS_WHAT_IS_FROZEN = """
import gc, runpy
from broker_pipeline.state.registry import WorkerRegistry
register = WorkerRegistry.register
async def tell_and_register(self, record):
    print(f"{gc.get_freeze_count()} frozen", flush=True)
    await register(self, record)
WorkerRegistry.register = tell_and_register
runpy.run_module("broker_pipeline", run_name="__main__", alter_sys=True)
"""


class Workers:
    """Starts worker processes on the shared servers."""

    def __init__(self, directory: Path, nats_url: str, redis_url: str, namespace: str) -> None:
        self.directory = directory
        self._servers = ("--nats-url", nats_url, "--redis-url", redis_url, "--namespace", namespace)
        self._children: list[ChildProcess] = []

    async def start(
        self, *arguments: str, model: Path | None = None, device: str = "cpu", program: Sequence[str] = PROGRAM
    ) -> ChildProcess:
        number = len(self._children)
        ready = self.directory / f"{number}.ready"
        threads = ["--threads", "1"] if device == "cpu" else []
        flags = ["--model", str(model or tiny_artifact()), "--device", device, *threads, "--log-format", "json"]
        command, *rest = arguments
        argv = [
            *program,
            command,
            *self._servers,
            *flags,
            "--ready-file",
            str(ready),
            *rest,
        ]
        child = await ChildProcess.spawn(f"worker-{number}", argv, log_path=self.directory / f"{number}.log")
        self._children.append(child)
        async with asyncio.timeout(60):
            while not ready.exists() and child.is_running:  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.02)
        return child

    async def stop(self) -> None:
        for child in self._children:
            await child.destroy()


@pytest.fixture
async def workers(tmp_path: Path, nats_url: str, redis_url: str, namespace: str) -> AsyncIterator[Workers]:
    started = Workers(tmp_path, nats_url, redis_url, namespace)
    yield started
    await started.stop()


async def ended(child: ChildProcess, timeout_s: float = 60) -> int:
    async with asyncio.timeout(timeout_s):
        return await child.wait()


async def test_a_stage_announces_itself_and_leaves_in_order(
    workers: Workers, redis: RedisClient, transport: Transport, namespace: str
) -> None:
    child = await workers.start("stage", "--blocks", "0:2", "--kv-tokens", "512", "--share", "x")
    registry = WorkerRegistry(redis, namespace, "main")
    [record] = await registry.workers()
    assert record.blocks is not None
    assert (record.worker, record.blocks.start, record.blocks.stop) == ("stage-0-2", 0, 2)
    assert record.share == "x"
    assert (record.role, record.num_layers, record.kv_capacity_tokens) == ("stage", 6, 512)
    assert (record.device, record.dtype, record.pid, record.state) == ("cpu", "float32", child.pid, "ready")
    control = subjects.control(record.subject)
    reply = await transport.request(control, Hello(pipeline="main"), reply_type=HelloReply, timeout_s=30)
    assert reply.body.record == record
    child.kill(signal.SIGTERM)
    assert await ended(child) == exit_codes.OK
    assert await registry.workers() == []


async def test_the_heap_is_settled_before_anybody_waits_for_heartbeats(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TELLS_WHAT_IS_FROZEN)
    child = await workers.start("stage", "--blocks", "0:2", program=(sys.executable, str(tmp_path / "program.py")))
    told = re.search(r"(\d+) frozen", "\n".join(child.last_lines()))
    assert told is not None
    assert int(told[1]) > 100_000, "torch and all other modules"


async def test_a_vision_worker_announces_itself_and_leaves_in_order(
    workers: Workers, redis: RedisClient, namespace: str
) -> None:
    child = await workers.start("vision", "--name", "eyes")
    registry = WorkerRegistry(redis, namespace, "main")
    [record] = await registry.workers()
    assert (record.worker, record.role, record.blocks) == ("eyes", "vision", None)
    child.kill(signal.SIGINT)
    assert await ended(child) == exit_codes.OK
    assert await registry.workers() == []


@asynccontextmanager
async def session_on(record: WorkerRecord, transport: Transport, namespace: str) -> AsyncIterator[Envelope]:
    """Open a session on a stage that is a whole pipeline; yields the envelope that closes it."""
    results = subjects.results(namespace, "main", "test")
    envelope = Envelope(
        pipeline="main",
        fingerprint=record.fingerprint,
        epoch=1,
        microbatch=1,
        route=(subjects.work(record.subject),),
        reply=results,
        budget_s=60.0,
        segments=(Segment(session="a", attempt=1, start=0, count=2, wants_token=True),),
        opens=(SessionOpen(session="a", attempt=1, num_kv_tokens=8, num_prompt_tokens=2, sampling=SamplingSettings()),),
    )
    tensors = {
        "token_ids": to_wire(torch.tensor([1, 2], dtype=torch.int32)),
        "positions": to_wire(torch.tensor([[0, 1]] * 3, dtype=torch.int32)),
    }
    async with transport.subscribe(results, MicrobatchResult) as answers:
        await transport.publish(envelope.route[0], envelope, tensors)
        async with asyncio.timeout(60):
            assert len((await anext(answers)).body.tokens) == 1
        closes = (SessionClose(session="a", attempt=1),)
        yield msgspec.structs.replace(envelope, microbatch=2, segments=(), opens=(), closes=closes)


async def prefill(record: WorkerRecord, transport: Transport, namespace: str, attempts: range) -> None:
    """Have a stage that is the last one compute a prompt of 1,024 tokens in each of a session's attempts."""
    results, n = subjects.results(namespace, "main", "test"), 1024
    tensors = {
        "hidden": to_wire(torch.ones(n, 64)),
        "positions": to_wire(torch.arange(n, dtype=torch.int32).repeat(3, 1)),
    }
    async with asyncio.timeout(60), transport.subscribe(results, MicrobatchResult) as answers:
        for attempt in attempts:
            envelope = Envelope(
                pipeline="main",
                fingerprint=record.fingerprint,
                epoch=1,
                microbatch=attempt,
                route=(subjects.work(record.subject),),
                reply=results,
                budget_s=60.0,
                segments=(Segment(session="a", attempt=attempt, start=0, count=n, wants_token=True),),
                opens=(
                    SessionOpen(
                        session="a",
                        attempt=attempt,
                        num_kv_tokens=n + 1,
                        num_prompt_tokens=n,
                        sampling=SamplingSettings(),
                    ),
                ),
            )
            await transport.publish(envelope.route[0], envelope, tensors)
            assert len((await anext(answers)).body.tokens) == 1


def num_threads(child: ChildProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{child.pid}/task").iterdir())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
async def test_a_stage_keeps_no_processor_busy_that_has_nothing_to_compute(
    workers: Workers, redis: RedisClient, transport: Transport, namespace: str, device: str
) -> None:
    child = await workers.start("stage", "--blocks", "2:", "--kv-tokens", "4096", device=device)
    [record] = await WorkerRegistry(redis, namespace, "main").workers()
    await prefill(record, transport, namespace, range(1, 3))
    threads, started, used_s = num_threads(child), time.monotonic(), cpu_seconds(child.pid)
    await prefill(record, transport, namespace, range(3, 11))
    assert cpu_seconds(child.pid) - used_s < 1.5 * (time.monotonic() - started), "one thread computes or launches"
    assert num_threads(child) == threads
    beats_subject = subjects.heartbeats(namespace, "main")
    async with asyncio.timeout(20), transport.subscribe(beats_subject, Heartbeat) as beats:
        await anext(beats)
        used_s = cpu_seconds(child.pid)
        await anext(beats)  # a second later
    assert cpu_seconds(child.pid) - used_s < 0.25


async def until_it_lives_on(transport: Transport, namespace: str, num_beats: int) -> None:
    """Return after `num_beats` heartbeats, a second apart, of a worker that drains and still holds a session."""
    subject = subjects.heartbeats(namespace, "main")
    async with asyncio.timeout(60), transport.subscribe(subject, Heartbeat) as beats:
        async for beat in beats:
            num_beats -= (beat.body.state, beat.body.num_sessions) == ("draining", 1)
            if num_beats == 0:
                return


async def test_a_draining_stage_says_so_and_stays_until_its_sessions_are_gone(
    workers: Workers, redis: RedisClient, transport: Transport, namespace: str
) -> None:
    child = await workers.start("stage", "--blocks", ":", "--name", "whole")
    registry = WorkerRegistry(redis, namespace, "main")
    [record] = await registry.workers()
    async with session_on(record, transport, namespace) as closing:
        child.kill(signal.SIGTERM)
        await until_it_lives_on(transport, namespace, num_beats=2)
        assert [record.state for record in await registry.workers()] == ["draining"]
        await transport.publish(closing.route[0], closing)
        assert await ended(child) == exit_codes.OK


async def test_a_drain_by_request_has_no_deadline_and_waits_for_what_comes_late(
    workers: Workers, redis: RedisClient, transport: Transport, namespace: str
) -> None:
    child = await workers.start("stage", "--blocks", ":", "--name", "whole", "--drain-s", "0.5")
    registry = WorkerRegistry(redis, namespace, "main")
    [record] = await registry.workers()
    drain = subjects.drain(record.subject)
    for _ in range(2):  # asking again is harmless
        reply = await transport.request(drain, DrainRequest(pipeline="main"), reply_type=DrainReply, timeout_s=30)
        assert reply.body.record == msgspec.structs.replace(record, state="draining")
    async with session_on(record, transport, namespace) as closing:  # sent before the conductor knew
        await until_it_lives_on(transport, namespace, num_beats=3)
        assert [record.state for record in await registry.workers()] == ["draining"]
        await transport.publish(closing.route[0], closing)
        assert await ended(child) == exit_codes.OK
    assert await registry.workers() == []


async def test_sigterm_gives_a_drain_its_deadline(
    workers: Workers, redis: RedisClient, transport: Transport, namespace: str
) -> None:
    child = await workers.start("stage", "--blocks", ":", "--drain-s", "0.5")
    [record] = await WorkerRegistry(redis, namespace, "main").workers()
    drain = subjects.drain(record.subject)
    with pytest.raises(ContractError, match="serves pipeline main"):
        await transport.request(drain, DrainRequest(pipeline="other"), reply_type=DrainReply, timeout_s=30)
    async with session_on(record, transport, namespace):
        await transport.request(drain, DrainRequest(pipeline="main"), reply_type=DrainReply, timeout_s=30)
        await until_it_lives_on(transport, namespace, num_beats=2)
        child.kill(signal.SIGTERM)
        assert await ended(child) == exit_codes.OK


async def test_a_drain_ends_at_its_deadline(
    workers: Workers, redis: RedisClient, transport: Transport, namespace: str
) -> None:
    child = await workers.start("stage", "--blocks", ":", "--drain-s", "0.5")
    [record] = await WorkerRegistry(redis, namespace, "main").workers()
    async with session_on(record, transport, namespace):
        child.kill(signal.SIGTERM)
        assert await ended(child) == exit_codes.OK
    assert await WorkerRegistry(redis, namespace, "main").workers() == []


async def test_a_second_worker_of_the_same_name_is_turned_away(
    workers: Workers, redis: RedisClient, namespace: str
) -> None:
    await workers.start("stage", "--blocks", "0:2", "--name", "one")
    second = await workers.start("stage", "--blocks", "2:6", "--name", "one")
    assert await ended(second) == exit_codes.TEMPORARY
    assert any("worker_name_taken" in line for line in second.last_lines())
    [record] = await WorkerRegistry(redis, namespace, "main").workers()
    assert record.blocks is not None
    assert record.blocks.stop == 2


async def test_a_killed_worker_can_come_back_under_its_name(
    workers: Workers, redis: RedisClient, namespace: str
) -> None:
    first = await workers.start("vision")
    first.kill()
    await first.wait()
    second = await workers.start("vision")
    assert second.is_running
    [record] = await WorkerRegistry(redis, namespace, "main").workers()
    assert record.pid == second.pid


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("stage", "--blocks", "0:9"), exit_codes.USAGE, "blocks 0:6"),
        (("stage", "--blocks", "nonsense"), exit_codes.USAGE, "START:STOP"),
        (("stage", "--blocks", ":", "--name", "no spaces"), exit_codes.USAGE, "name"),
        (("vision", "--redis-url", "redis://127.0.0.1:1"), exit_codes.UNAVAILABLE, "Redis"),
    ],
)
async def test_what_cannot_work_ends_at_once_and_says_why(
    workers: Workers, arguments: tuple[str, ...], code: int, said: str
) -> None:
    child = await workers.start(*arguments)
    assert await ended(child) == code
    assert said in "\n".join(child.last_lines())


@needs_memory_limits
@pytest.mark.parametrize(
    ("limit_mib", "arguments", "what"),
    [
        (120, ("vision",), "Python and torch"),
        (200, ("stage", "--blocks", ":"), "Python and torch"),
        (300, ("stage", "--blocks", ":", "--kv-tokens", "500000"), "the weights of blocks :, and their KV,"),
    ],
)
async def test_a_memory_limit_that_is_too_low_is_named_before_anything_is_loaded(
    workers: Workers, limit_mib: int, arguments: tuple[str, ...], what: str
) -> None:
    with memory_limit(limit_mib) as group:
        child = await workers.start(*arguments, program=(*inside(group), *PROGRAM))
        assert await ended(child) == exit_codes.USAGE
    said = "\n".join(child.last_lines())
    assert f"{what} need" in said
    assert "WORKER_MEMORY" in said


@needs_memory_limits
@pytest.mark.parametrize("arguments", [("vision",), ("stage", "--blocks", ":", "--kv-tokens", "512")])
async def test_the_least_memory_limit_that_is_taken_is_enough_to_start(
    workers: Workers, arguments: tuple[str, ...]
) -> None:
    with memory_limit(RUNTIME_BYTES // 2**20 + 40) as group:
        child = await workers.start(*arguments, program=(*inside(group), *PROGRAM))
        assert child.is_running, child.last_lines()
        child.kill(signal.SIGTERM)
        assert await ended(child) == exit_codes.OK


async def test_an_artifact_without_the_files_of_these_blocks_is_refused(workers: Workers, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    for file in tiny_artifact().iterdir():
        if file.name != "block-00001.safetensors":
            (partial / file.name).symlink_to(file)
    child = await workers.start("stage", "--blocks", "0:2", model=partial)
    assert await ended(child) == exit_codes.CONFIGURATION
    assert "block-00001.safetensors" in "\n".join(child.last_lines())
    assert (await workers.start("stage", "--blocks", "2:", model=partial)).is_running


@pytest.mark.parametrize(
    ("command", "file", "tensor"),
    [
        (("stage", "--blocks", "1:3"), "block-00002.safetensors", r"layers.2."),
        (("vision",), "vision.safetensors", "visual."),
        (("stage", "--blocks", "0:1", "--vision"), "vision.safetensors", "visual."),
    ],
)
async def test_damaged_weights_are_named_and_served_to_nobody_who_did_not_ask_for_it(
    workers: Workers, tmp_path: Path, command: tuple[str, ...], file: str, tensor: str
) -> None:
    damaged = shutil.copytree(tiny_artifact(), tmp_path / "damaged")
    with (damaged / file).open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        [byte] = opened.read(1)
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([byte ^ 1]))
    child = await workers.start(*command, model=damaged)
    assert await ended(child) == exit_codes.CONFIGURATION
    said = "\n".join(child.last_lines())
    assert f"{damaged / file} is damaged" in said
    assert tensor in said
    assert (await workers.start(*command, "--no-verify-weights", model=damaged)).is_running


async def test_a_stage_runs_on_what_was_fetched_for_it_and_another_says_what_to_fetch(
    workers: Workers, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    fetching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker_pipeline", "fetch", "--blocks", "1:3", str(tiny_artifact()), str(part))
    )
    assert await fetching.wait() == 0
    own = await workers.start("stage", "--blocks", "1:3", "--kv-tokens", "512", model=part)
    assert own.is_running
    other = await workers.start("stage", "--blocks", "2:5", "--kv-tokens", "512", model=part)
    assert await ended(other) == exit_codes.CONFIGURATION
    said = "".join(other.last_lines())
    assert "block-00003.safetensors, block-00004.safetensors" in said
    assert f"broker-pipeline fetch --blocks 3:5 FROM {part}" in said
