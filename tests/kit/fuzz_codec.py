"""Damages valid messages in every way and looks at what the codec makes of them.

    python -m tests.kit.fuzz_codec --cases 1000000 --seed 0

A case is one message with some damage: cut short, bits flipped, bytes overwritten, pieces taken out, put in twice,
swapped or mixed with those of another message, numbers replaced by extreme ones, a wrong length in front. Allowed are
a typed error and a message whose tensors lie within the payload; anything else is printed with its case number, and the
exit status is 1. The same seed gives the same cases.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from broker_pipeline.errors import ContractError, Failure
from broker_pipeline.messages.activation import (
    Envelope,
    MicrobatchResult,
    Segment,
    SessionClose,
    SessionFailure,
    SessionOpen,
    SharedPrefix,
    StageTiming,
    VisualSpan,
)
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from broker_pipeline.wire.codec import Frame, WireTensor, decode, encode
from broker_pipeline.wire.nats.parts import LENGTH_BYTES, open_whole, whole_pieces

_EXTREMES = [
    b"-1",
    b"0",
    b"1e999",
    b"1.5",
    b"9223372036854775808",
    b"18446744073709551616",
    b"9" * 400,
    b"NaN",
    b"null",
]
_SHOW_EVERY = 100_000


@dataclass(frozen=True)
class Sample:
    """A message."""

    kind: type[msgspec.Struct]
    metadata: bytes
    payload: bytes
    damaged: bytes | None = None
    """What travels in place of the two, laid together as they should be."""

    @property
    def whole(self) -> bytes:
        """The bytes that a receiver gets."""
        if self.damaged is not None:
            return self.damaged
        return b"".join(whole_pieces(Frame(self.metadata, (self.payload,), len(self.payload))))


@dataclass(frozen=True)
class Outcome:
    """What became of the cases: how many of each name, and the ones that broke the rule."""

    counts: Counter[str]
    broken: tuple[str, ...]


def sample(chance: random.Random) -> Sample:
    """Return a valid message of random content."""
    body, tensors = _envelope(chance) if chance.random() < 0.7 else (_result(chance), {})
    frame = encode(body, tensors)
    return Sample(type(body), frame.metadata, b"".join(frame.pieces))


def case(chance: random.Random, samples: list[Sample]) -> tuple[str, Sample]:
    """Return the name of some damage, and a message that has suffered it, once or several times."""
    message = chance.choice(samples)
    name, damage = chance.choice(DAMAGES)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        message = damage(chance, message, samples)
    return name, message


def judge(message: Sample) -> str:
    """Decode a message and return the name of the outcome; raises what the codec must not raise."""
    whole = message.whole
    try:
        body, tensors = decode(*open_whole(whole), message.kind)
    except ContractError as error:
        return type(error).__name__ if error.message else "BROKEN: an error without a word"
    assert isinstance(body, message.kind)
    assert sum(tensor.data.nbytes for tensor in tensors.values()) <= len(whole)
    for tensor in tensors.values():
        bytes(tensor.data)
    return "decoded"


def fuzz(num_cases: int, seed: int, *, on_progress: Callable[[int, Counter[str]], None] | None = None) -> Outcome:
    """Run cases. Every case depends on the seed and its own number alone."""
    samples = [sample(random.Random(f"{seed}/sample/{number}")) for number in range(64)]
    counts: Counter[str] = Counter()
    broken = []
    for number in range(num_cases):
        name, message = case(random.Random(f"{seed}/{number}"), samples)
        try:
            outcome = judge(message)
        except Exception as bug:  # noqa: BLE001 - this is what is looked for
            outcome = "BROKEN"
            broken.append(f"case {number} ({name}): {bug!r}; {message.whole!r:.2000}")
        counts[f"{name}: {outcome}"] += 1
        if on_progress and number % _SHOW_EVERY == _SHOW_EVERY - 1:
            on_progress(number + 1, counts)
    return Outcome(counts, tuple(broken))


# --- damage ---------------------------------------------------------------------------------------------------------


def _cut_short(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    if message.payload and chance.random() < 0.3:
        return _with(message, payload=message.payload[: chance.randrange(len(message.payload))])
    return _with(message, metadata=message.metadata[: chance.randrange(max(1, len(message.metadata)))])


def _flip_bit(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    return _edited(chance, message, lambda byte: byte ^ (1 << chance.randrange(8)))


def _overwrite(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    return _edited(chance, message, lambda _: chance.choice(b'\0\xff"\\{}[],:0-9.eE\x80'))


def _take_out(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    start, stop = _piece(chance, message.metadata)
    return _with(message, metadata=message.metadata[:start] + message.metadata[stop:])


def _repeat(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    start, stop = _piece(chance, message.metadata)
    return _with(message, metadata=message.metadata[:stop] + message.metadata[start:])


def _swap(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    first, second = sorted((_piece(chance, message.metadata), _piece(chance, message.metadata)))
    text, middle = message.metadata, max(first[1], second[0])
    swapped = text[: first[0]] + text[middle : second[1]] + text[first[1] : middle] + text[first[0] : first[1]]
    return _with(message, metadata=swapped + text[second[1] :])


def _mix(chance: random.Random, message: Sample, samples: list[Sample]) -> Sample:
    other = chance.choice(samples)
    if chance.random() < 0.3:
        return _with(message, payload=other.payload)
    (start, _), (other_start, other_stop) = _piece(chance, message.metadata), _piece(chance, other.metadata)
    return _with(message, metadata=message.metadata[:start] + other.metadata[other_start:other_stop])


def _extreme_number(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    text = message.metadata
    places = [at for at in range(1, len(text)) if text[at : at + 1].isdigit() and text[at - 1 : at] in b":[,"]
    if not places:
        return message
    start = stop = chance.choice(places)
    while stop < len(text) and text[stop : stop + 1] in b"0123456789.eE+-":
        stop += 1
    return _with(message, metadata=text[:start] + chance.choice(_EXTREMES) + text[stop:])


def _lengthen(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    more = chance.randbytes(chance.randrange(1, 40))
    if chance.random() < 0.5:
        return _with(message, payload=message.payload + more)
    return _with(message, metadata=message.metadata + more)


def _misframe(chance: random.Random, message: Sample, _: list[Sample]) -> Sample:
    whole, length = message.whole, int.from_bytes(message.whole[:LENGTH_BYTES], "little")
    kind = chance.randrange(4)
    if kind == 0:
        damaged = whole[: chance.randrange(len(whole) + 1)]
    elif kind == 1:
        damaged = whole[chance.randrange(1, 20) :]
    else:
        near = max(0, length + chance.choice((-20, -16, -1, 1, 15, 16, 40, len(message.payload))))
        wrong = chance.randrange(2**32) if kind == 2 else near
        damaged = wrong.to_bytes(LENGTH_BYTES, "little") + whole[LENGTH_BYTES:]
    return Sample(message.kind, message.metadata, message.payload, damaged)


Damage = Callable[[random.Random, Sample, list[Sample]], Sample]
DAMAGES: tuple[tuple[str, Damage], ...] = (
    ("cut short", _cut_short),
    ("bits flipped", _flip_bit),
    ("bits flipped", _flip_bit),
    ("bytes overwritten", _overwrite),
    ("pieces taken out", _take_out),
    ("pieces repeated", _repeat),
    ("pieces swapped", _swap),
    ("messages mixed", _mix),
    ("extreme numbers", _extreme_number),
    ("lengthened", _lengthen),
    ("framing", _misframe),
)


def _with(message: Sample, *, metadata: bytes | None = None, payload: bytes | None = None) -> Sample:
    return Sample(
        message.kind,
        message.metadata if metadata is None else metadata,
        message.payload if payload is None else payload,
    )


def _edited(chance: random.Random, message: Sample, change: Callable[[int], int]) -> Sample:
    """Change one byte of metadata or payload."""
    in_payload = message.payload and (chance.random() < 0.15 or not message.metadata)
    content = bytearray(message.payload if in_payload else message.metadata)
    if content:
        at = chance.randrange(len(content))
        content[at] = change(content[at])
    return _with(message, payload=bytes(content)) if in_payload else _with(message, metadata=bytes(content))


def _piece(chance: random.Random, text: bytes) -> tuple[int, int]:
    start = chance.randrange(len(text) + 1)
    return start, min(len(text), start + chance.choice((1, 2, 5, 20, 100)))


# --- valid messages -------------------------------------------------------------------------------------------------


def _envelope(chance: random.Random) -> tuple[Envelope, dict[str, WireTensor]]:
    num_sessions, num_tokens = chance.randrange(4), chance.randrange(1, 6)
    names = [f"session-{number}" for number in range(num_sessions)]
    body = Envelope(
        pipeline="main",
        fingerprint=chance.choice(("f" * chance.randrange(65), "b\u00fccher \U0001f4da")),
        epoch=chance.randrange(2**40),
        microbatch=chance.randrange(2**40),
        route=tuple(f"bp.main.worker.stage-{number}.1a2b.work" for number in range(chance.randrange(1, 4))),
        reply="bp.main.conductor.1a2b.results",
        budget_s=chance.random() * 30,
        segments=tuple(_segment(chance, name) for name in names),
        opens=tuple(_open(chance, name) for name in names[:2]),
        closes=tuple(SessionClose(session=name, attempt=1) for name in names[1:]),
        failures=tuple(_failure(name) for name in names[2:]),
        timings=(StageTiming(worker="stage-0", queue_s=0.001, compute_s=chance.random()),),
    )
    hidden = WireTensor("bfloat16", (num_tokens, 8), memoryview(chance.randbytes(num_tokens * 16)))
    ids = np.arange(num_tokens, dtype=np.int32)
    tensors = {
        "positions": WireTensor.from_numpy(np.stack([ids, ids, ids])),
        **({"hidden": hidden} if chance.random() < 0.5 else {"token_ids": WireTensor.from_numpy(ids)}),
        "history": WireTensor.from_numpy(np.zeros(0, np.int32)),
    }
    return body, tensors


def _segment(chance: random.Random, name: str) -> Segment:
    spans = tuple(VisualSpan(offset=at, count=1 + at, row=at * 9) for at in range(chance.randrange(3)))
    return Segment(session=name, attempt=1, start=chance.randrange(99), count=1, wants_token=True, visual=spans)


def _open(chance: random.Random, name: str) -> SessionOpen:
    sampling = SamplingSettings(temperature=chance.random(), top_p=0.9, seed=chance.randrange(-(2**63), 2**63))
    prefix = SharedPrefix(session="source", attempt=1, num_tokens=3) if chance.random() < 0.5 else None
    return SessionOpen(session=name, attempt=2, num_kv_tokens=64, num_prompt_tokens=7, sampling=sampling, prefix=prefix)


def _failure(name: str) -> SessionFailure:
    return SessionFailure(session=name, attempt=1, failure=Failure("kv_capacity", "no room", retryable=True))


def _result(chance: random.Random) -> MicrobatchResult:
    tokens = tuple(
        SampledToken(session=f"s{number}", attempt=1, position=number, token_id=number * 7, logprob=-chance.random())
        for number in range(chance.randrange(4))
    )
    failure = Failure("compute", "out of memory", field="hidden") if chance.random() < 0.3 else None
    return MicrobatchResult(
        pipeline="main", fingerprint="f", epoch=3, microbatch=9, worker="stage-1", tokens=tokens, failure=failure
    )


# --- the command ----------------------------------------------------------------------------------------------------


def table(counts: Counter[str]) -> str:
    """Return the counts by damage and outcome, as Markdown."""
    rows: dict[str, Counter[str]] = {}
    for key, count in counts.items():
        damage, _, outcome = key.partition(": ")
        rows.setdefault(damage, Counter())[outcome] += count
    outcomes = sorted({outcome for row in rows.values() for outcome in row})
    lines = ["| damage | " + " | ".join(outcomes) + " |", "|---" * (len(outcomes) + 1) + "|"]
    for damage in [*sorted(rows), "all"]:
        row = rows.get(damage) or sum(rows.values(), Counter())
        lines.append(f"| {damage} | " + " | ".join(f"{row[outcome]:,}" for outcome in outcomes) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; the exit status is 1 when any case broke the rule."""
    parser = argparse.ArgumentParser(description="Damage valid messages and see what the codec makes of them.")
    parser.add_argument("--cases", type=int, default=100_000, help="how many (default: 100,000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases (default: 0)")
    options = parser.parse_args()
    started = time.monotonic()

    def show(num_done: int, counts: Counter[str]) -> None:
        num_decoded = sum(count for key, count in counts.items() if key.endswith(": decoded"))
        print(f"{num_done:,} cases, {time.monotonic() - started:.0f} s, {num_decoded:,} decoded", flush=True)

    outcome = fuzz(options.cases, options.seed, on_progress=show)
    print(
        f"\n{options.cases:,} cases, seed {options.seed}, {time.monotonic() - started:.0f} s\n\n{table(outcome.counts)}"
    )
    for line in outcome.broken:
        print(line, file=sys.stderr)
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
