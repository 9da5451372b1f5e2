"""A stage for measuring what is in front of it: it waits as long as it would compute, and answers."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from broker_pipeline import subjects
from broker_pipeline.messages.activation import Envelope, MicrobatchResult, StageTiming
from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.wire.transport import Transport

STAGE = "bench"
NUM_TOKENS = 256
"""Ids that it answers with."""


@asynccontextmanager
async def answering_stage(nats_url: str, root: str, tokens_per_s: float) -> AsyncIterator[None]:
    """Answer envelopes from another process while the context is open."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_run_stage, args=(nats_url, root, tokens_per_s, ready), daemon=True)
    process.start()
    try:
        if not await asyncio.to_thread(ready.wait, 30.0):
            raise TimeoutError("the process that answers as a stage did not start")
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.join, 10.0)


def _run_stage(nats_url: str, root: str, tokens_per_s: float, ready: Any) -> None:
    uvloop.run(_answer_envelopes(nats_url, root, tokens_per_s, ready))


async def _answer_envelopes(nats_url: str, root: str, tokens_per_s: float, ready: Any) -> None:
    async with (
        Transport.open(nats_url, name="bench stage") as transport,
        transport.subscribe(subjects.work(root), Envelope) as envelopes,
    ):
        ready.set()
        async for message in envelopes:
            seconds = len(message.body.segments) / tokens_per_s
            await asyncio.sleep(seconds)
            await transport.publish(message.body.reply, answer_to(message.body, seconds))


def answer_to(envelope: Envelope, compute_s: float) -> MicrobatchResult:
    """Return what a stage that holds the whole model would answer, with tokens of no meaning."""
    tokens = tuple(
        SampledToken(
            session=segment.session,
            attempt=segment.attempt,
            position=segment.start + segment.count,
            token_id=(segment.start + segment.count) % NUM_TOKENS,
        )
        for segment in envelope.segments
        if segment.wants_token
    )
    return MicrobatchResult(
        pipeline=envelope.pipeline,
        fingerprint=envelope.fingerprint,
        epoch=envelope.epoch,
        microbatch=envelope.microbatch,
        worker=STAGE,
        tokens=tokens,
        timings=(StageTiming(worker=STAGE, queue_s=0.0, compute_s=compute_s),),
    )
