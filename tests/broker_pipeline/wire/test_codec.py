"""Metadata and payload: what goes in comes out, and nothing else gets through."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_pipeline.errors import (
    ContractError,
    ContractVersionError,
    MalformedEnvelopeError,
    TensorMismatchError,
)
from broker_pipeline.messages.activation import Envelope, MicrobatchResult, Segment, SessionOpen, VisualSpan
from broker_pipeline.messages.base import TensorSpec
from broker_pipeline.messages.control import CancelRequest, Hello
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from broker_pipeline.wire.codec import (
    ALIGNMENT_BYTES,
    ITEM_BYTES,
    MAX_METADATA_BYTES,
    MAX_TENSORS,
    Frame,
    WireTensor,
    decode,
    encode,
)

NAMES = st.from_regex(r"\A[a-z0-9_.]{1,12}\Z")
SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@st.composite
def wire_tensors(draw: st.DrawFn) -> WireTensor:
    dtype, shape = draw(st.sampled_from(sorted(ITEM_BYTES))), draw(SHAPES)
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    return WireTensor(dtype, shape, memoryview(draw(st.binary(min_size=num_bytes, max_size=num_bytes))))  # type: ignore[arg-type]


SEGMENTS = st.builds(
    Segment,
    session=st.from_regex(r"\A[A-Za-z0-9_-]{1,20}\Z"),
    attempt=st.integers(1, 9),
    start=st.integers(0, 2**20),
    count=st.integers(1, 9),
    wants_token=st.booleans(),
    visual=st.lists(
        st.builds(VisualSpan, offset=st.integers(0, 9), count=st.integers(1, 9), row=st.integers(0, 9)), max_size=2
    ).map(tuple),
)
ENVELOPES = st.builds(
    Envelope,
    pipeline=st.just("main"),
    fingerprint=st.text(max_size=20),
    epoch=st.integers(0, 2**40),
    microbatch=st.integers(0, 2**40),
    route=st.just(("bp.main.worker.a.1",)),
    reply=st.just("bp.main.conductor.c.results"),
    budget_s=st.floats(0, 1e9),
    segments=st.lists(SEGMENTS, max_size=4).map(tuple),
)


def envelope(**changes: object) -> Envelope:
    facts: dict[str, object] = {
        "pipeline": "main",
        "fingerprint": "f" * 64,
        "epoch": 3,
        "microbatch": 9,
        "route": ("a.work", "b.work"),
        "reply": "c.results",
        "budget_s": 2.5,
        "segments": (Segment(session="s", attempt=1, start=0, count=2, wants_token=True),),
        "opens": (
            SessionOpen(session="s", attempt=1, num_kv_tokens=9, num_prompt_tokens=2, sampling=SamplingSettings()),
        ),
    }
    return Envelope(**{**facts, **changes})  # type: ignore[arg-type]


def tensors() -> dict[str, WireTensor]:
    return {
        "positions": WireTensor.from_numpy(np.arange(6, dtype=np.int32).reshape(3, 2)),
        "hidden": WireTensor("bfloat16", (2, 5), memoryview(bytes(range(20)))),
        "history": WireTensor.from_numpy(np.arange(3, dtype=np.int32)),
    }


def payload(frame: Frame) -> bytes:
    return b"".join(frame.pieces)


def edited(change: Callable[[dict[str, object]], None]) -> tuple[bytes, bytes]:
    """A valid message, its metadata changed."""
    frame = encode(envelope(), tensors())
    facts = msgspec.json.decode(frame.metadata)
    change(facts)
    return msgspec.json.encode(facts), payload(frame)


# --- round trip -----------------------------------------------------------------------------------------------------


@given(ENVELOPES, st.dictionaries(NAMES, wire_tensors(), max_size=5))
def test_round_trip(body: Envelope, sent: dict[str, WireTensor]) -> None:
    frame = encode(body, sent)
    assert frame.num_payload_bytes == len(payload(frame))
    received, got = decode(frame.metadata, memoryview(payload(frame)), Envelope)
    assert msgspec.structs.replace(received, tensors=()) == body
    assert list(got) == list(sent)
    for name, tensor in sent.items():
        assert (got[name].dtype, got[name].shape, bytes(got[name].data)) == (
            tensor.dtype,
            tensor.shape,
            bytes(tensor.data),
        )
    assert all(spec.offset % ALIGNMENT_BYTES == 0 for spec in received.tensors)


def test_tensors_are_views_of_the_buffer_and_never_copies() -> None:
    array = np.arange(1000, dtype=np.float32)
    frame = encode(envelope(), {"hidden": WireTensor.from_numpy(array)})
    array[7] = -1.0  # seen through the piece: no copy was taken
    assert np.frombuffer(frame.pieces[0], np.float32)[7] == -1.0
    buffer = bytearray(payload(frame))
    _, got = decode(frame.metadata, memoryview(buffer), Envelope)
    buffer[0:4] = np.float32(5.0).tobytes()
    assert got["hidden"].to_numpy()[0] == 5.0


def test_the_version_is_always_said_and_stands_first() -> None:
    for body in (envelope(), Hello(pipeline="main")):
        assert encode(body).metadata.startswith(b'{"version":3,')


def test_a_stale_table_is_replaced() -> None:
    first, _ = decode(encode(envelope(), tensors()).metadata, payload(encode(envelope(), tensors())), Envelope)
    passed_on = encode(first, {"hidden": tensors()["hidden"]})
    body, got = decode(passed_on.metadata, payload(passed_on), Envelope)
    assert [spec.name for spec in body.tensors] == list(got) == ["hidden"]
    body, got = decode(encode(first).metadata, b"", Envelope)
    assert not body.tensors
    assert not got


def test_bodies_without_tensors() -> None:
    frame = encode(CancelRequest(job_id="a"))
    assert decode(frame.metadata, b"", CancelRequest) == (CancelRequest(job_id="a"), {})
    with pytest.raises(TensorMismatchError, match="takes no tensors"):
        encode(CancelRequest(job_id="a"), tensors())
    with pytest.raises(TensorMismatchError, match="payload has 1"):
        decode(frame.metadata, b"x", CancelRequest)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3)])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numpy_there_and_back(dtype: type, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    back = WireTensor.from_numpy(array).to_numpy()
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert (back == array).all()


# --- what cannot be sent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [np.zeros(3, np.float64), np.zeros(3, ">i4"), np.zeros((4, 4), np.int32).T[1:]])
def test_arrays_that_do_not_travel(array: np.ndarray) -> None:
    with pytest.raises(TensorMismatchError):
        WireTensor.from_numpy(array)


def test_tensors_whose_bytes_do_not_fit() -> None:
    with pytest.raises(TensorMismatchError, match="needs 12 bytes"):
        WireTensor("float32", (3,), memoryview(b"x" * 11))
    with pytest.raises(TensorMismatchError, match="dtype"):
        WireTensor("float64", (1,), memoryview(b"x" * 8))  # type: ignore[arg-type]
    with pytest.raises(TensorMismatchError, match="contiguous"):
        WireTensor("int32", (1,), memoryview(b"x" * 8)[::2])
    with pytest.raises(TensorMismatchError, match="numpy has no bfloat16"):
        tensors()["hidden"].to_numpy()


def test_too_many_tensors_and_too_much_metadata() -> None:
    one = WireTensor("int32", (1,), memoryview(b"1234"))
    encode(envelope(), {f"t{number}": one for number in range(MAX_TENSORS)})
    with pytest.raises(TensorMismatchError, match="65 tensors"):
        encode(envelope(), {f"t{number}": one for number in range(MAX_TENSORS + 1)})
    with pytest.raises(MalformedEnvelopeError, match="bytes of metadata"):
        encode(envelope(fingerprint="x" * MAX_METADATA_BYTES))
    with pytest.raises(MalformedEnvelopeError, match="cannot be encoded"):
        encode(envelope(fingerprint="\ud800"))


# --- what is not accepted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"version":4,"nothing":"we know"}',
        b'{"version":1,"pipeline":"main"}',
        b'{"something":[1,{"version":3}],"version":0}',
        b'{"version":"2"}',
        b'{"version":3.5}',
        b'{"version":true}',
        b'{"version":[1]}',
    ],
)
def test_another_version_is_named_as_such_whatever_else_it_holds(metadata: bytes) -> None:
    with pytest.raises(ContractVersionError, match="same release") as refusal:
        decode(metadata, b"", Envelope)
    assert refusal.value.field == "version"


def test_a_message_that_hides_its_version() -> None:
    metadata, bytes_ = edited(lambda facts: facts.pop("version"))
    with pytest.raises(MalformedEnvelopeError, match="does not say which version"):
        decode(metadata, bytes_, Envelope)


def test_the_version_may_stand_anywhere() -> None:
    frame = encode(envelope(), tensors())
    facts = msgspec.json.decode(frame.metadata)
    facts["version"] = facts.pop("version")
    decode(msgspec.json.encode(facts), payload(frame), Envelope)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda facts: facts.update(surprise=1), None),
        (lambda facts: facts["segments"][0].update(surprise=1), "segments[0]"),
        (lambda facts: facts.pop("route"), None),
        (lambda facts: facts.update(route=[]), "route"),
        (lambda facts: facts.update(route=["a b"]), "route[0]"),
        (lambda facts: facts.update(epoch=-1), "epoch"),
        (lambda facts: facts.update(epoch=2**41), "epoch"),
        (lambda facts: facts["segments"][0].update(count=0), "segments[0].count"),
        (lambda facts: facts["segments"][0].update(session=""), "segments[0].session"),
        (lambda facts: facts["segments"][0].update(session="x" * 65), "segments[0].session"),
        (lambda facts: facts["opens"][0].update(session="../etc"), "opens[0].session"),
        (lambda facts: facts["tensors"][0].update(dtype="float64"), "tensors[0].dtype"),
        (lambda facts: facts["tensors"][0].update(shape=[1, 1, 1, 1, 1]), "tensors[0].shape"),
        (lambda facts: facts["tensors"][0].update(name="UPPER"), "tensors[0].name"),
    ],
)
def test_metadata_that_breaks_the_contract_names_the_field(
    change: Callable[[dict[str, object]], None], field: str | None
) -> None:
    metadata, bytes_ = edited(change)
    with pytest.raises(MalformedEnvelopeError) as refusal:
        decode(metadata, bytes_, Envelope)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("index", "changes", "match"),
    [
        (0, {"offset": 16}, r"tensors\[0\].offset .* has to be 0"),
        (1, {"offset": 24}, r"tensors\[1\].offset .* has to be 32"),
        (1, {"offset": 0}, r"tensors\[1\].offset .* is 0"),
        (2, {"offset": 2**40}, r"tensors\[2\].offset .* has to be 64"),
        (1, {"num_bytes": 18}, r"tensors\[1\].num_bytes .* has to be 20"),
        (1, {"shape": [2, 4], "num_bytes": 16}, r"tensors\[2\].offset .* has to be 48"),
        (2, {"shape": [2], "num_bytes": 8}, "describes 72 bytes, but the payload has 76"),
        (0, {"shape": [2**40, 2**40, 2**40, 2**40]}, "num_bytes"),
        (1, {"name": "positions"}, "same name"),
    ],
)
def test_tables_that_do_not_describe_the_payload(index: int, changes: dict[str, object], match: str) -> None:
    def change(facts: dict[str, object]) -> None:
        facts["tensors"][index].update(changes)  # type: ignore[index]

    metadata, bytes_ = edited(change)
    with pytest.raises(TensorMismatchError, match=match) as refusal:
        decode(metadata, bytes_, Envelope)
    assert refusal.value.field is not None


def test_tensors_in_another_order_than_their_bytes() -> None:
    metadata, bytes_ = edited(lambda facts: facts["tensors"].reverse())  # type: ignore[attr-defined]
    with pytest.raises(TensorMismatchError):
        decode(metadata, bytes_, Envelope)


def test_more_tensors_than_a_message_holds() -> None:
    empty = {"name": "x", "dtype": "int32", "shape": [0], "offset": 0, "num_bytes": 0}
    table = [{**empty, "name": f"t{number}"} for number in range(MAX_TENSORS + 1)]
    metadata, _ = edited(lambda facts: facts.update(tensors=table))
    with pytest.raises(TensorMismatchError, match="65 tensors"):
        decode(metadata, b"", Envelope)


@pytest.mark.parametrize("metadata", [b"", b"null", b"[]", b"{", b"[" * 100_000, b'{"version":3,"x":' + b"[" * 100_000])
def test_what_is_no_message(metadata: bytes) -> None:
    with pytest.raises(MalformedEnvelopeError):
        decode(metadata, b"", Envelope)


def test_too_much_metadata_is_not_parsed() -> None:
    with pytest.raises(MalformedEnvelopeError, match="bytes of metadata"):
        decode(b" " * (MAX_METADATA_BYTES + 1), b"", Envelope)


# --- damage ---------------------------------------------------------------------------------------------------------


def decodes_or_says_why(metadata: bytes, bytes_: bytes, body_type: type[msgspec.Struct]) -> bool:
    """Nothing but a typed error or a message whose tensors lie within the payload."""
    try:
        _, got = decode(metadata, memoryview(bytes_), body_type)
    except ContractError:
        return False
    assert sum(tensor.data.nbytes for tensor in got.values()) <= len(bytes_)
    return True


def test_every_truncation_is_noticed() -> None:
    frame = encode(envelope(), tensors())
    whole = payload(frame)
    for length in range(len(frame.metadata)):
        assert not decodes_or_says_why(frame.metadata[:length], whole, Envelope)
    for length in range(len(whole)):
        assert not decodes_or_says_why(frame.metadata, whole[:length], Envelope)
    assert not decodes_or_says_why(frame.metadata, whole + b"\0", Envelope)


@settings(max_examples=400)
@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=4), st.sampled_from(["envelope", "result"]))
def test_flipped_bits_give_a_typed_error_or_a_message(places: list[int], kind: str) -> None:
    body: msgspec.Struct = envelope()
    if kind == "result":
        token = SampledToken(session="s", attempt=1, position=3, token_id=5, logprob=-0.5)
        body = MicrobatchResult(pipeline="p", fingerprint="f", epoch=1, microbatch=1, worker="w", tokens=(token,))
    frame = encode(body, tensors())
    metadata, bytes_ = bytearray(frame.metadata), bytearray(payload(frame))
    for place in places:
        bit = place % (8 * (len(metadata) + len(bytes_)))
        part, at = (metadata, bit) if bit < 8 * len(metadata) else (bytes_, bit - 8 * len(metadata))
        part[at // 8] ^= 1 << at % 8
    decodes_or_says_why(bytes(metadata), bytes(bytes_), type(body))


@settings(max_examples=300)
@given(st.binary(max_size=300), st.binary(max_size=40))
@example(b'{"version":3,"pipeline":"\xff"}', b"")
@example(b'{"version":' + b"9" * 10_000 + b"}", b"")
@example(b'{"version":1e999}', b"")
def test_noise(metadata: bytes, bytes_: bytes) -> None:
    assert not decodes_or_says_why(metadata, bytes_, Envelope)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(Envelope.__struct_fields__)), JSON)
def test_any_value_in_any_field(name: str, value: object) -> None:
    metadata, bytes_ = edited(lambda facts: facts.update({name: value}))
    decodes_or_says_why(metadata, bytes_, Envelope)


@settings(max_examples=300)
@given(st.integers(0, 2), st.sampled_from(sorted(TensorSpec.__struct_fields__)), JSON)
def test_any_value_in_any_field_of_the_table(index: int, name: str, value: object) -> None:
    def change(facts: dict[str, object]) -> None:
        facts["tensors"][index].update({name: value})  # type: ignore[index]

    metadata, bytes_ = edited(change)
    decodes_or_says_why(metadata, bytes_, Envelope)
