"""Whether NATS is there, stores what it is given, and takes messages of a good size."""

from __future__ import annotations

import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass

from nats.js.api import StorageType, StreamConfig, StreamInfo
from nats.js.errors import NotFoundError
from rich.filesize import decimal

from broker_pipeline import subjects
from broker_pipeline.errors import PipelineError, RequestTimeoutError, SubjectDeniedError, TransportError
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.storage.jetstream import ensure_stream, jetstream_errors
from broker_pipeline.storage.media_objects import NUM_STREAMS
from broker_pipeline.tools.doctor.finding import Finding, denied, fail, ok, warn
from broker_pipeline.wire.nats.address import without_credentials
from broker_pipeline.wire.nats.connection import open_connection
from broker_pipeline.wire.nats.jetstream import JetStream

_MIB = 2**20
_LEAST_VERSION, _SYNCING_VERSION = (2, 9), (2, 10)
_LEAST_PAYLOAD_BYTES, _GOOD_PAYLOAD_BYTES = 16 * 1024, _MIB
_FULL = 0.9
_PROBE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class StreamFill:
    """How full a stream is."""

    name: str
    num_bytes: int
    max_bytes: int
    """-1 for as much as there is room for."""


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """What a NATS server says of itself."""

    url: str
    version: str
    max_payload: int
    round_trip_s: float
    not_stored: str = ""
    """Why JetStream did not store a message; empty where it did."""
    is_denied: bool = False
    """Whether this host's role may not ask JetStream that."""
    is_store_unknown: bool = False
    """Whether it did not say, as where this host may not make streams."""
    streams: tuple[StreamFill, ...] | None = ()
    """Those of the namespace; None where it did not say."""


async def look_at_broker(
    url: str, namespace: str, timeout_s: float, credentials: Credentials | None = None
) -> BrokerFacts:
    """Connect, and have a message stored in a stream of its own; raises `TransportError` where nobody answers."""
    failures: list[TransportError] = []
    async with open_connection(
        url, "doctor", on_failed=failures.append, timeout_s=timeout_s, credentials=credentials
    ) as connection:
        started = time.monotonic()
        await connection.barrier(timeout_s)
        round_trip_s = time.monotonic() - started
        jetstream = JetStream(connection.client, timeout_s=timeout_s)
        not_stored, is_unknown, fills = "", False, None
        try:
            fills = await _fills(jetstream, namespace)
            await _store(jetstream, namespace)
        except RequestTimeoutError:  # it hangs, or says nothing to who may not ask
            is_unknown = True
        except PipelineError as error:
            not_stored = error.message
        is_denied = any(isinstance(failure, SubjectDeniedError) for failure in failures)
        said = connection.client.connected_server_version
        version = f"{said.major}.{said.minor}.{said.patch}"
        payload = connection.max_payload
        return BrokerFacts(
            without_credentials(url), version, payload, round_trip_s, not_stored, is_denied, is_unknown, fills
        )


def judge_broker(facts: BrokerFacts) -> list[Finding]:
    """Say what is wrong with a server that answers."""
    at = f"NATS {facts.version} at {facts.url}"
    found = [ok("broker", f"{at}, {facts.round_trip_s * 1000:.1f} ms away"), _judge_store(facts), _judge_payload(facts)]
    if _version(facts.version) < _LEAST_VERSION:
        found[0] = fail("broker", f"{at} is too old", "take NATS 2.10 or newer")
    elif _version(facts.version) < _SYNCING_VERSION:
        found[0] = warn("broker", f"{at} syncs every two minutes; a power cut costs jobs", "take 2.10 or newer")
    return found


def _judge_store(facts: BrokerFacts) -> Finding:
    if facts.not_stored:
        return fail(
            "jetstream",
            facts.not_stored,
            "put `jetstream { store_dir: … }` into its configuration; after a full disk, make room and restart it",
        )
    full = [each for each in facts.streams or () if each.max_bytes > 0 and each.num_bytes > _FULL * each.max_bytes]
    if full:
        shown = ", ".join(f"{each.name} has {decimal(each.num_bytes)} of {decimal(each.max_bytes)}" for each in full)
        return warn("jetstream", shown, "wait until jobs are done, or start gateways with larger limits")
    if facts.is_denied:
        return denied("jetstream", f"{_held(facts.streams)}whether it stores messages")
    if facts.is_store_unknown:
        remedy = "see its log; it says nothing to who has no right to ask"
        return warn("jetstream", "did not say whether it stores messages", remedy)
    return ok("jetstream", f"{_held(facts.streams)}stores messages")


def _held(streams: tuple[StreamFill, ...] | None) -> str:
    if streams is None:
        return "how full its streams are, and "
    return f"{len(streams)} streams of this namespace with {decimal(sum(each.num_bytes for each in streams))}; "


def _judge_payload(facts: BrokerFacts) -> Finding:
    said, remedy = f"messages of up to {decimal(facts.max_payload)}", "set `max_payload: 8MB` in its configuration"
    if facts.max_payload < _LEAST_PAYLOAD_BYTES:
        return fail("max_payload", said, remedy)
    if facts.max_payload < _GOOD_PAYLOAD_BYTES:
        return warn("max_payload", f"{said}: payloads travel in many parts", remedy)
    return ok("max_payload", said)


async def _fills(jetstream: JetStream, namespace: str) -> tuple[StreamFill, ...]:
    media = [subjects.media_stream(namespace, shard) for shard in range(NUM_STREAMS)]
    fills = []
    for name in (subjects.job_stream(namespace), *media, subjects.file_stream(namespace)):
        with jetstream_errors("JetStream"), suppress(NotFoundError):
            fills.append(_fill(name, await jetstream.stream_info(name)))
    return tuple(fills)


def _fill(name: str, info: StreamInfo) -> StreamFill:
    return StreamFill(name, info.state.bytes, -1 if info.config.max_bytes is None else info.config.max_bytes)


async def _store(jetstream: JetStream, namespace: str) -> None:
    """Store a message, since JetStream answers questions when its disk is full."""
    name = f"{namespace}-doctor-{secrets.token_hex(4)}"
    config = StreamConfig(name=name, subjects=[name], storage=StorageType.FILE, max_bytes=_MIB, num_replicas=1)
    await ensure_stream(jetstream, config, update=False)
    try:
        with jetstream_errors("storing a message"):
            await jetstream.publish(name, bytes(_PROBE_BYTES))
    finally:
        with suppress(TransportError), jetstream_errors("removing a stream"):
            await jetstream.delete_stream(name)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))
