"""What the messages of one decode step cost the host: n sessions on their way to a stage, n tokens on their way back.

envelope   conductor ── n segments, token ids and positions ──► first stage
result     last stage ── n tokens ──► conductor
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import numpy as np

from broker_pipeline.messages.activation import MicrobatchResult, StageTiming
from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.wire.codec import decode, encode
from broker_pipeline.wire.nats.parts import open_whole, whole_pieces
from broker_pipeline.wire.wire_tensor import WireTensor
from trials.bench.hop.echo import in_turns, transport_echo
from trials.bench.hop.raw_comparison import bench_envelope
from trials.bench.spread import Spread

_NUM_TIMED = 200


class DecodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a decode step. Seconds for each."""

    message: Literal["envelope", "result"]
    num_segments: int
    num_bytes: int
    encode_s: Spread
    decode_s: Spread
    """With every check."""
    cpu_s: float
    """CPU time of all of a hop at both ends: encoded, sent, received, decoded. Without the server's."""
    transport_s: Spread
    """One way."""


async def measure_decode(nats_url: str, num_segments: int, *, num_trips: int) -> tuple[DecodeRow, DecodeRow]:
    """Measure both messages of a decode step of `num_segments` sessions over a NATS server."""
    envelope, _ = bench_envelope(0, num_segments)
    tensors = {
        "token_ids": WireTensor.from_numpy(np.zeros(num_segments, np.int32)),
        "positions": WireTensor.from_numpy(np.zeros((3, num_segments), np.int32)),
    }
    return (
        await _measure(nats_url, "envelope", envelope, tensors, num_trips),
        await _measure(nats_url, "result", _result(num_segments), {}, num_trips),
    )


def _result(num_segments: int) -> MicrobatchResult:
    tokens = tuple(
        SampledToken(session=secrets.token_hex(12), attempt=1, position=301 + index, token_id=100_000 + index)
        for index in range(num_segments)
    )
    return MicrobatchResult(
        pipeline="main",
        fingerprint="0" * 64,
        epoch=1,
        microbatch=12345,
        worker="stage-0",
        tokens=tokens,
        timings=(StageTiming(worker="stage-0", queue_s=0.000123, compute_s=0.00456),),
    )


async def _measure(
    nats_url: str,
    message: Literal["envelope", "result"],
    body: msgspec.Struct,
    tensors: Mapping[str, WireTensor],
    num_trips: int,
) -> DecodeRow:
    whole = b"".join(whole_pieces(encode(body, tensors)))
    async with transport_echo(nats_url, body, tensors) as through:
        await in_turns({"": through}, num_trips)
        started = time.thread_time()
        samples = (await in_turns({"": through}, num_trips, is_warm=True))[""]
        cpu_s = time.thread_time() - started
    return DecodeRow(
        message=message,
        num_segments=len(getattr(body, "segments", ())) or len(getattr(body, "tokens", ())),
        num_bytes=len(whole),
        encode_s=_timed(lambda: encode(body, tensors)),
        decode_s=_timed(lambda: decode(*open_whole(whole), type(body))),
        cpu_s=cpu_s / (2 * len(samples)),
        transport_s=Spread.of(samples).scaled(0.5),
    )


def _timed(step: Callable[[], object]) -> Spread:
    samples = []
    for _ in range(_NUM_TIMED):
        started = time.perf_counter()
        step()
        samples.append(time.perf_counter() - started)
    return Spread.of(samples)
