"""One hop: an envelope there and back through `Transport`, alongside raw nats-py with as many bytes.

    transport   ping ── envelope of n tensor bytes ──► subject ──► decoded ── the same envelope ──► subject ──► decoded
    raw         ping ── payload of all its bytes ───► subject ──► callback ── the same payload ───► subject ──► callback

Both sides run in this process and on one event loop, so that a round trip is the sum of all that a hop costs, twice.
Raw and transport take turns in short rounds on the same loop: what else the machine does meets both alike.
"""

from __future__ import annotations

import secrets

import msgspec
import numpy as np

from broker_pipeline.messages.activation import Envelope, Segment, StageTiming
from broker_pipeline.wire.codec import encode
from broker_pipeline.wire.nats.parts import whole_pieces
from broker_pipeline.wire.wire_tensor import WireTensor
from trials.bench.hop.echo import in_turns, raw_echo, transport_echo
from trials.bench.spread import Spread


class HopRow(msgspec.Struct, frozen=True, kw_only=True):
    """One size of message. Seconds one way: half a round trip."""

    num_tensor_bytes: int
    num_segments: int
    num_bytes: int
    """Tensor bytes and metadata together: what the raw message holds as well."""
    raw_s: Spread
    transport_s: Spread

    @property
    def ratio(self) -> float:
        """How many times longer the transport's hop takes."""
        return self.transport_s.median / self.raw_s.median

    @property
    def quiet_ratio(self) -> float:
        """The same of the tenth percentiles: of rounds that nothing else on the machine disturbed."""
        return self.transport_s.p10 / self.raw_s.p10

    @property
    def excess_s(self) -> float:
        """What the transport adds to one hop, in seconds."""
        return self.transport_s.median - self.raw_s.median


def bench_envelope(num_tensor_bytes: int, num_segments: int) -> tuple[Envelope, dict[str, WireTensor]]:
    """Return an envelope as it leaves the first of three stages: `hidden` and `positions` with that many bytes.

    Positions are int32 [3, num_segments]; what remains is bf16 hidden states of one row each.
    """
    root = "bp.main.worker.stage-{}.0123456789abcdef.work"
    segments = tuple(
        Segment(session=secrets.token_hex(12), attempt=1, start=300 + index, count=1, wants_token=True)
        for index in range(num_segments)
    )
    envelope = Envelope(
        pipeline="main",
        fingerprint="0" * 64,
        epoch=1,
        microbatch=12345,
        route=(root.format(1), root.format(2)),
        reply="bp.main.conductor.0123456789abcdef.results",
        budget_s=29.123456,
        segments=segments,
        timings=(StageTiming(worker="stage-0", queue_s=0.000123, compute_s=0.00456),),
    )
    positions = np.zeros((3, num_segments), np.int32)
    num_hidden_bytes = max(num_tensor_bytes - positions.nbytes, 2 * num_segments)
    width = num_hidden_bytes // (2 * num_segments)
    hidden = np.random.default_rng(0).integers(0, 256, 2 * width * num_segments, np.uint8)
    return envelope, {
        "positions": WireTensor.from_numpy(positions),
        "hidden": WireTensor("bfloat16", (num_segments, width), hidden.data),
    }


async def measure_hop(nats_url: str, num_tensor_bytes: int, num_segments: int, *, num_trips: int) -> HopRow:
    """Measure round trips of one size over a NATS server, after a twentieth as many for warming up."""
    envelope, tensors = bench_envelope(num_tensor_bytes, num_segments)
    whole = b"".join(whole_pieces(encode(envelope, tensors)))
    async with raw_echo(nats_url, whole) as raw, transport_echo(nats_url, envelope, tensors) as through:
        samples = await in_turns({"raw": raw, "transport": through}, num_trips)
    return HopRow(
        num_tensor_bytes=num_tensor_bytes,
        num_segments=num_segments,
        num_bytes=len(whole),
        raw_s=Spread.of(samples["raw"]).scaled(0.5),
        transport_s=Spread.of(samples["transport"]).scaled(0.5),
    )
