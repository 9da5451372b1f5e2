"""Workers that speak the real contract on a real broker and compute nothing: tests decide when they hang, die or fail.

A token follows from session and position alone, as with greedy or seeded sampling, so that a replay is right exactly
when its tokens are. KV is kept as a stage keeps it: wrong starts, unknown sessions and over-commitment are refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress

import msgspec
import numpy as np

from broker_pipeline import subjects
from broker_pipeline.errors import (
    ComputeError,
    Failure,
    KVCapacityError,
    KVPositionError,
    PipelineError,
    SessionUnknownError,
    StaleAttemptError,
    StaleEpochError,
    VisualRowsMissingError,
)
from broker_pipeline.messages.activation import (
    Envelope,
    MicrobatchResult,
    Segment,
    SessionFailure,
    SharedPrefix,
    StageTiming,
)
from broker_pipeline.messages.jobs import TextPart
from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.messages.vision import PreparedSession, PrepareRequest
from broker_pipeline.messages.workers import BlockRange, Heartbeat
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Received, Transport
from broker_pipeline.wire.wire_tensor import WireTensor
from tests.kit.acting.worker import ActingWorker

_TOKENS = np.array([32, 34, 65, 66, 67, 68, 69, 70, 71, 72, 73], np.int32)


def right_token(session: str, position: int) -> int:
    """Return the token that these stages sample: an ordinary one of the tiny tokenizer's, four times in a row."""
    digest = hashlib.sha256(f"{session} {position // 4}".encode()).digest()
    return int(_TOKENS[digest[0] % len(_TOKENS)])


class ActingStage(ActingWorker):
    """Owns blocks `[start, stop)` of a model with 6."""

    def __init__(
        self,
        transport: Transport,
        redis: RedisClient,
        namespace: str,
        name: str,
        start: int,
        stop: int,
        *,
        fingerprint: str,
        share: str = "",
        kv: int = 4096,
        step_s: float = 0.002,
    ) -> None:
        super().__init__(
            transport, redis, namespace, name, "stage", share=share,
            fingerprint=fingerprint, blocks=BlockRange(start=start, stop=stop), num_layers=6,
            kv_capacity_tokens=kv, max_batch_tokens=256,
            copies_prefixes=True, keeps_prefixes=True, verifies_drafts=True,
        )  # fmt: skip
        self.step_s = step_s
        self.kv_tokens = kv
        """What it really has room for, whatever it announces."""
        self.poison: set[str] = set()
        self.reserved: dict[str, tuple[int, int]] = {}
        self.cached: dict[str, range] = {}
        """How long sessions may be when the next segment begins: what is written may end in drafts."""
        self.closed: dict[str, int] = {}
        self.kept: dict[tuple[str, int], int] = {}
        """Tokens at the beginning of sessions that have ended, for others to begin with."""
        self.num_copied = 0
        self.rowless: set[str] = set()
        """Sessions that are told once that their rows are missing."""
        self.refuses_closes = False
        """Fails what holds nothing but closes."""
        self.num_refused = 0
        self.num_to_lose = 0
        """Envelopes that never arrive, as in a short interruption of the network."""
        self.num_steps = 0
        self.batch_sizes: list[int] = []
        self.opens: list[str] = []

    def heartbeat(self) -> Heartbeat:
        return msgspec.structs.replace(super().heartbeat(), num_sessions=len(self.reserved))

    def adopt(self, epoch: int) -> None:
        if epoch > self.epoch:
            for table in (self.reserved, self.cached, self.closed, self.kept):
                table.clear()
        super().adopt(epoch)

    async def serve(self, tasks: asyncio.TaskGroup) -> None:
        ready = asyncio.Event()
        tasks.create_task(self._work(ready))
        await ready.wait()

    async def _work(self, ready: asyncio.Event) -> None:
        async with self.transport.subscribe(subjects.work(self.record.subject), Envelope) as envelopes:
            ready.set()
            async for message in envelopes:
                await self.unfrozen()
                await asyncio.sleep(self.step_s)
                with suppress(PipelineError):
                    await self._step(message)

    async def _step(self, message: Received[Envelope]) -> None:
        envelope = message.body
        if self.num_to_lose and envelope.segments:
            self.num_to_lose -= 1
            return
        if envelope.epoch < self.epoch:
            await self._answer(envelope, failure=StaleEpochError("an older epoch").to_failure())
            return
        self.adopt(envelope.epoch)
        if self.refuses_closes and not envelope.segments:
            self.num_refused += 1
            await self._answer(envelope, failure=ComputeError("no closes").to_failure())
            return
        for closing in envelope.closes:
            self._close(closing.session, closing.attempt, closing.num_kept_tokens)
        if self.is_sick and envelope.segments:
            await self._answer(envelope, failure=ComputeError("out of memory").to_failure())
            return
        if any(segment.session in self.poison for segment in envelope.segments):
            await self._answer(envelope, failure=ComputeError("poisoned").to_failure())
            return
        self.num_steps += 1
        self.batch_sizes.append(len(envelope.segments))
        self.opens += [opening.session for opening in envelope.opens]
        failures = list(envelope.failures)
        kept = tuple(segment for segment in envelope.segments if self._takes(envelope, segment, failures))
        timings = (*envelope.timings, StageTiming(worker=self.record.worker, queue_s=0.0, compute_s=self.step_s))
        onward = msgspec.structs.replace(
            envelope, route=envelope.route[1:], segments=kept, failures=tuple(failures), timings=timings, tensors=()
        )
        if not onward.route:
            await self._answer(onward, tokens=tuple(token for segment in kept for token in _sample(segment)))
        else:
            await self.transport.publish(onward.route[0], onward)

    def _takes(self, envelope: Envelope, segment: Segment, failures: list[SessionFailure]) -> bool:
        try:
            self._admit(envelope, segment)
        except PipelineError as error:
            failures.append(
                SessionFailure(
                    session=segment.session, attempt=segment.attempt, failure=error.to_failure(),
                    worker=self.record.worker,
                )
            )  # fmt: skip
            return False
        return True

    def _admit(self, envelope: Envelope, segment: Segment) -> None:
        session = segment.session
        if segment.attempt <= self.closed.get(session, 0):
            raise StaleAttemptError("closed")
        for opening in envelope.opens:
            if opening.session == session:
                num_copied = self._num_copied(opening.prefix)
                self.closed[session] = opening.attempt - 1  # what is kept of those before is closed by name only
                self.reserved[session] = (opening.attempt, opening.num_kv_tokens)
                self.cached[session] = range(num_copied, num_copied + 1)
        if segment.num_kv_tokens and self.reserved.get(session, (0, 0))[0] == segment.attempt:
            self.reserved[session] = (segment.attempt, max(segment.num_kv_tokens, self.reserved[session][1]))
        if session not in self.cached or self.reserved[session][0] != segment.attempt:
            raise SessionUnknownError("unknown")
        if self.kv_tokens < sum(tokens for _, tokens in self.reserved.values()) + sum(self.kept.values()):
            raise KVCapacityError("over-committed")
        if segment.start + segment.count > self.reserved[session][1]:
            raise KVCapacityError("beyond its reservation")
        if segment.start not in self.cached[session]:
            raise KVPositionError(f"{segment.start} after {self.cached[session]}")
        if session in self.rowless:
            self.rowless.discard(session)
            raise VisualRowsMissingError("no rows")
        stop = segment.start + segment.count
        self.cached[session] = range(stop - segment.num_drafts, stop + 1)

    def _num_copied(self, prefix: SharedPrefix | None) -> int:
        if prefix is None:
            return 0
        source = prefix.session, prefix.attempt
        is_open = self.reserved.get(prefix.session, (0, 0))[0] == prefix.attempt
        length = self.cached[prefix.session].stop - 1 if is_open else self.kept.get(source)
        if length is None:
            raise SessionUnknownError(f"nothing of {source} is here")
        if length < prefix.num_tokens:
            raise KVPositionError(f"{length} tokens of {source} are here")
        self.num_copied += prefix.num_tokens
        return prefix.num_tokens

    def _close(self, session: str, attempt: int, num_kept: int = 0) -> None:
        self.closed[session] = max(attempt, self.closed.get(session, 0))
        if not num_kept:
            self.kept.pop((session, attempt), None)
        if session in self.reserved and self.reserved[session][0] <= attempt:
            if self.reserved[session][0] == attempt and 0 < num_kept < self.cached[session].stop:
                self.kept[session, attempt] = num_kept
            del self.reserved[session], self.cached[session]

    async def _answer(self, envelope: Envelope, **fields: object) -> None:
        result = MicrobatchResult(
            pipeline=envelope.pipeline, fingerprint=envelope.fingerprint, epoch=envelope.epoch,
            microbatch=envelope.microbatch, worker=self.record.worker, failures=envelope.failures,
            timings=envelope.timings, **fields,
        )  # type: ignore[arg-type] # fmt: skip
        await self.transport.publish(envelope.reply, result)


class ActingVision(ActingWorker):
    """Turns every character of a prompt into a token; `!` words make it fail."""

    def __init__(
        self, transport: Transport, redis: RedisClient, namespace: str, name: str = "vision-0", *, fingerprint: str
    ) -> None:
        super().__init__(transport, redis, namespace, name, "vision", fingerprint=fingerprint)
        self.failures: dict[str, Failure] = {}
        """What prompts that contain a word fail with."""
        self.requests: list[PrepareRequest] = []
        self.num_in_hand = 0
        self.prepare_s = 0.0
        self.deadly = ""
        """What kills this worker when it is in a prompt."""
        self.has_died = asyncio.Event()

    def adopt(self, epoch: int) -> None:
        """Obey the conductors of all shares."""

    async def serve(self, tasks: asyncio.TaskGroup) -> None:
        ready = asyncio.Event()
        tasks.create_task(self._work(ready, tasks))
        await ready.wait()

    async def _work(self, ready: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        async with self.transport.subscribe(subjects.work(self.record.subject), PrepareRequest) as requests:
            ready.set()
            async for message in requests:
                tasks.create_task(self._prepare(message))

    def heartbeat(self) -> Heartbeat:
        return msgspec.structs.replace(super().heartbeat(), num_sessions=self.num_in_hand)

    async def _prepare(self, message: Received[PrepareRequest]) -> None:
        self.requests.append(message.body)
        self.num_in_hand += 1
        await self.unfrozen()
        await self._answer(message)
        self.num_in_hand -= 1

    async def _answer(self, message: Received[PrepareRequest]) -> None:
        request = message.body
        text = "".join(part.text for turn in request.messages for part in turn.content if isinstance(part, TextPart))
        if self.deadly and self.deadly in text:
            self.has_died.set()
            self.kill()
        await asyncio.sleep(self.prepare_s)
        answer = PreparedSession(session=request.session, attempt=request.attempt, worker=self.record.worker)
        failure = next((failure for word, failure in self.failures.items() if word in text), None)
        if self.is_sick:
            failure = ComputeError("out of memory").to_failure()
        if len(text) > request.max_prompt_tokens:
            failure = Failure("prompt_too_long", f"{len(text)} tokens", field="messages")
        with suppress(PipelineError):
            if failure is not None:
                await message.respond(msgspec.structs.replace(answer, failure=failure))
                return
            ids = np.arange(len(text), dtype=np.int32) % 300
            tensors = {
                "token_ids": WireTensor.from_numpy(ids),
                "positions": WireTensor.from_numpy(np.ascontiguousarray(np.stack([ids, ids, ids]))),
            }
            await message.respond(msgspec.structs.replace(answer, num_tokens=len(text)), tensors)


def _sample(segment: Segment) -> list[SampledToken]:
    stop = segment.start + segment.count
    return [
        SampledToken(
            session=segment.session,
            attempt=segment.attempt,
            position=position,
            token_id=right_token(segment.session, position),
        )
        for position in range(stop - segment.num_drafts, stop + 1)
        if segment.wants_token
    ]
