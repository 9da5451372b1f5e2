"""What a conductor spends on a caption, all in: a real one, with real NATS and Redis, and nobody else in its process.

    this process, measured                                    another process
    job queue ─► conductor ─► envelopes ────── NATS ────────► stages that wait, and answer for the route
    Redis     ◄─────┘     ◄── tokens ◄──────── NATS ◄──────── vision worker; clients that follow each job by another

The stages take their time in proportion to the tokens: the pace is the same for any number of sessions, and what a
caption costs can be compared between them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from broker_pipeline.conductor.conductor import Conductor
from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.conductor.surroundings import Surroundings
from broker_pipeline.config import CommonSettings
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.model_facts import GenerationDefaults, ModelFacts
from broker_pipeline.process.heap import settle_heap
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport
from trials.bench.conductor.other_side import FINGERPRINT, NUM_AHEAD, NUM_TOKENS, OtherSideSettings, other_side
from trials.bench.conductor.rows import PARTS, ConductorBenchSettings, ConductorRow
from trials.bench.conductor.stopwatch import Stopwatch
from trials.bench.conductor.timed_parts import StepCounts, counted_steps, timed_parts
from trials.bench.options import say

_MEDIA_BYTES = 2**24
_START_S = 20.0
_POLL_S = 2.0


async def measure_conductor(settings: ConductorBenchSettings, nats_url: str, redis_url: str) -> list[ConductorRow]:
    """Measure every number of sessions in turn."""
    rows = []
    for num_sessions in settings.num_sessions:
        say(f"{num_sessions} sessions")
        rows.append(await _measure(settings, num_sessions, nats_url, redis_url))
    return rows


async def _measure(settings: ConductorBenchSettings, num_sessions: int, nats_url: str, redis_url: str) -> ConductorRow:
    watch = Stopwatch()
    others = OtherSideSettings(
        nats_url=nats_url,
        redis_url=redis_url,
        namespace=f"bench-{secrets.token_hex(4)}",  # what an earlier run left is in nobody's way
        num_stages=settings.num_stages,
        num_sessions=num_sessions,
        num_output_tokens=settings.num_output_tokens,
        tokens_per_s=settings.tokens_per_s,
        are_watched=settings.are_watched,
    )
    with counted_steps() as counts:
        async with _conductor(others) as around, other_side(others):
            await _until_busy(around, num_sessions)
            row = await _observe(settings, num_sessions, counts)
            with timed_parts(watch):
                return _with_parts(row, await _observe(settings, num_sessions, counts), watch)


@asynccontextmanager
async def _conductor(others: OtherSideSettings) -> AsyncIterator[Surroundings]:
    """Conduct while the context is open."""
    async with (
        Transport.open(others.nats_url, name="conductor main") as transport,
        open_redis(others.redis_url) as redis,
    ):
        await JobQueue(transport, others.namespace, max_bytes=_MEDIA_BYTES).ensure()
        await MediaStore(transport, redis, others.namespace, max_bytes=_MEDIA_BYTES).ensure()
        settings = ConductorSettings(model="", max_sessions=others.num_sessions, max_jobs=2 * others.num_sessions + 256)
        common = CommonSettings(nats_url=others.nats_url, redis_url=others.redis_url, namespace=others.namespace)
        around = Surroundings(transport, redis, _model(others.num_stages), common, settings, "bench")
        async with asyncio.TaskGroup() as tasks:
            conducting = tasks.create_task(Conductor(around).run(asyncio.Event()))
            settle_heap()  # as a service does
            yield around
            conducting.cancel()


async def _until_busy(around: Surroundings, num_sessions: int) -> None:
    """Wait until most sessions compute, and the first have ended; if that does not come, go on and say so."""
    started = time.monotonic()
    while (status := around.metrics.status) is None or not _is_busy(status, num_sessions):
        await asyncio.sleep(_POLL_S)
        if status is not None:
            say(f"{status.num_sessions['running']} run, {sum(status.num_finished.values())} captions are done")
        if time.monotonic() - started > _START_S:
            say("the pace is more than the conductor keeps up with here: measured with the sessions that there are")
            return


def _is_busy(status: ConductorStatus, num_sessions: int) -> bool:
    return status.num_sessions["running"] >= num_sessions * 3 // 4 and sum(status.num_finished.values()) > NUM_AHEAD


async def _observe(settings: ConductorBenchSettings, num_sessions: int, counts: StepCounts) -> ConductorRow:
    num_microbatches, num_tokens = counts.num_microbatches, counts.num_tokens
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(settings.seconds / 2)
    cpu_s, seconds = time.process_time() - cpu, time.perf_counter() - started
    return ConductorRow(
        num_sessions=num_sessions,
        num_tokens=counts.num_tokens - num_tokens,
        num_microbatches=counts.num_microbatches - num_microbatches,
        num_output_tokens=settings.num_output_tokens,
        seconds=seconds,
        total_s=cpu_s,
        parts_s={},
    )


def _with_parts(row: ConductorRow, timed: ConductorRow, watch: Stopwatch) -> ConductorRow:
    """Return a row with the parts that were timed after it, as for as many tokens: timing them takes time as well."""
    share = row.num_tokens / max(1, timed.num_tokens)
    return msgspec.structs.replace(row, parts_s={name: share * watch.seconds[name] for name in PARTS})


def _model(num_layers: int) -> TextModel:
    """Return a model of which there is nothing but a vocabulary of bytes."""
    facts = ModelFacts(
        name="bench",
        fingerprint=FINGERPRINT,
        model_type="qwen3_vl",
        num_layers=num_layers,
        hidden_size=1,
        num_kv_heads=1,
        head_dim=1,
        num_experts_per_token=0,
        num_deepstack_levels=0,
        vocab_size=NUM_TOKENS,
        max_position_embeddings=2**18,
        dtype="float32",
        image_token_id=0,
        video_token_id=0,
        eos_token_ids=(),
        generation=GenerationDefaults(),
    )
    return TextModel(facts, _vocabulary())


def _vocabulary() -> Vocabulary:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return Vocabulary(tokenizer)
