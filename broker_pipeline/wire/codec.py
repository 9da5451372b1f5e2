"""Version 3 of the contract: a struct and its tensors become metadata and payload, and back.

    metadata   JSON of the body; its field `tensors` is the table, its field `version` stands first

    payload    ┌──────────────┬─────┬──────────────┬─────┬───────────┐
               │ tensor 0     │ pad │ tensor 1     │ pad │ tensor 2  │
               └──────────────┴─────┴──────────────┴─────┴───────────┘
    offset     0                    multiple of 16       multiple of 16; the payload ends with the last tensor

The layout follows from the table's dtypes and shapes alone; a receiver computes it and refuses a table that says
anything else. So offsets cannot overlap, run backwards, hide bytes or leave the payload. Decoding copies nothing:
the tensors are views of the receive buffer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from broker_pipeline.errors import ContractVersionError, MalformedEnvelopeError, TensorMismatchError
from broker_pipeline.messages.base import CONTRACT_VERSION, TensorSpec
from broker_pipeline.messages.edges import EdgeRef
from broker_pipeline.wire.wire_tensor import ITEM_BYTES, WireTensor, tensor_bytes

__all__ = ["ITEM_BYTES", "Frame", "WireTensor", "decode", "encode"]

Body = TypeVar("Body", bound=msgspec.Struct)

ALIGNMENT_BYTES = 16
MAX_TENSORS = 64
MAX_METADATA_BYTES = 16 * 2**20
MAX_PAYLOAD_BYTES = 2**30

# msgspec says MsgspecError for what is wrong JSON, ValueError for text that is not UTF-8.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_PADDING = bytes(ALIGNMENT_BYTES)
_ENCODER = msgspec.json.Encoder()
_VERSION_PREFIX = b'{"version":%d' % CONTRACT_VERSION
_THIS_VERSION = (_VERSION_PREFIX + b",", _VERSION_PREFIX + b"}")
_FIELD = re.compile(r" - at `(?:key in )?\$?\.?([^`]*)`")


class Frame(msgspec.Struct, frozen=True):
    """An encoded message: metadata, and the payload in pieces that together are its bytes (padding included)."""

    metadata: bytes
    pieces: tuple[memoryview | bytes, ...]
    num_payload_bytes: int
    edge: EdgeRef | None = None
    """Where the payload is when it took an edge; the frame itself has none then."""


class _VersionOnly(msgspec.Struct):
    version: Any = None


def encode(body: msgspec.Struct, tensors: Mapping[str, WireTensor] | None = None) -> Frame:
    """Encode `body` with `tensors`, whose table replaces the body's field of that name. No tensor is copied.

    Raises `TensorMismatchError` when the body takes no tensors or their number or size is beyond what a message
    holds, `MalformedEnvelopeError` when the body itself does not fit the contract.
    """
    table, pieces, num_bytes = _lay_out({} if tensors is None else tensors)
    stale: Sequence[TensorSpec] = getattr(body, "tensors", ())
    if table or stale:
        body = _with_table(body, table)
    return Frame(_encode_metadata(body), pieces, num_bytes)


def decode(
    metadata: bytes | memoryview, payload: bytes | memoryview, body_type: type[Body]
) -> tuple[Body, dict[str, WireTensor]]:
    """Decode a message of a known type. The tensors are views of `payload`.

    Raises `ContractVersionError` when the sender speaks another version (whatever else the message holds),
    `MalformedEnvelopeError` when the metadata does not fit `body_type`, `TensorMismatchError` when table and
    payload disagree.
    """
    body = _decode_metadata(metadata, body_type)
    table: Sequence[TensorSpec] = getattr(body, "tensors", ())
    return body, _read_tensors(table, payload if isinstance(payload, memoryview) else memoryview(payload))


# --- metadata -------------------------------------------------------------------------------------------------------


def _encode_metadata(body: msgspec.Struct) -> bytes:
    try:
        text = _ENCODER.encode(body)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise MalformedEnvelopeError(f"{type(body).__name__} cannot be encoded: {error}") from error
    if getattr(body, "version", None) == CONTRACT_VERSION:
        # Structs leave out fields at their default; the version has to be said, or the next one could not be told.
        text = _VERSION_PREFIX + (b"," if len(text) > 2 else b"") + text[1:]
    if len(text) > MAX_METADATA_BYTES:
        raise MalformedEnvelopeError(
            f"{type(body).__name__} has {len(text)} bytes of metadata; a message holds {MAX_METADATA_BYTES}"
        )
    return text


@lru_cache(maxsize=256)
def _reader(body_type: type[msgspec.Struct]) -> tuple[msgspec.json.Decoder[Any], bool]:
    """Return what decodes a body, and whether the body says its version."""
    return msgspec.json.Decoder(body_type), "version" in body_type.__struct_fields__


def _decode_metadata(metadata: bytes | memoryview, body_type: type[Body]) -> Body:
    if len(metadata) > MAX_METADATA_BYTES:
        raise MalformedEnvelopeError(f"{len(metadata)} bytes of metadata; a message holds {MAX_METADATA_BYTES}")
    decoder, is_versioned = _reader(body_type)
    if is_versioned and metadata[: len(_VERSION_PREFIX) + 1] not in _THIS_VERSION:
        _check_version(metadata)
    try:
        body: Body = decoder.decode(metadata)
    except _UNREADABLE as error:
        raise _malformed(body_type, error) from error
    return body


def _check_version(metadata: bytes | memoryview) -> None:
    """Look at the version alone, so that a newer sender is named as such and not as one of unknown fields."""
    try:
        version = _reader(_VersionOnly)[0].decode(metadata).version
    except _UNREADABLE as error:
        raise _malformed(_VersionOnly, error) from error
    if version is None:
        raise MalformedEnvelopeError("the message does not say which version of the contract it is", field="version")
    if version is True or version != CONTRACT_VERSION:
        raise ContractVersionError(
            f"the sender speaks version {version!r:.40} of the contract, this process {CONTRACT_VERSION}; "
            "run the same release everywhere",
            field="version",
        )


def _malformed(body_type: type[msgspec.Struct], error: Exception) -> MalformedEnvelopeError:
    found = _FIELD.search(str(error))
    name = "metadata" if body_type is _VersionOnly else body_type.__name__
    return MalformedEnvelopeError(f"{name}: {error}", field=found.group(1) if found else None)


# --- tensors --------------------------------------------------------------------------------------------------------


def _aligned(num_bytes: int) -> int:
    return num_bytes + ALIGNMENT_BYTES - 1 & -ALIGNMENT_BYTES


def _with_table(body: msgspec.Struct, table: tuple[TensorSpec, ...]) -> msgspec.Struct:
    if not hasattr(body, "tensors"):
        raise TensorMismatchError(f"{type(body).__name__} takes no tensors", field="tensors")
    return msgspec.structs.replace(body, tensors=table)


def _lay_out(
    tensors: Mapping[str, WireTensor],
) -> tuple[tuple[TensorSpec, ...], tuple[memoryview | bytes, ...], int]:
    """Return the table, the payload in pieces, and its size: the one layout there is."""
    if len(tensors) > MAX_TENSORS:
        raise TensorMismatchError(f"{len(tensors)} tensors; a message holds {MAX_TENSORS}", field="tensors")
    table: list[TensorSpec] = []
    pieces: list[memoryview | bytes] = []
    end = 0
    for name, tensor in tensors.items():
        size, offset = tensor.data.nbytes, _aligned(end)
        table.append(TensorSpec(name=name, dtype=tensor.dtype, shape=tensor.shape, offset=offset, num_bytes=size))
        if not size:  # nothing is no piece of the payload
            continue
        if offset > end:
            pieces.append(_PADDING[: offset - end])
        pieces.append(tensor.data)
        end = offset + size
    if end > MAX_PAYLOAD_BYTES:
        raise TensorMismatchError(f"{end} bytes of tensors; a message holds {MAX_PAYLOAD_BYTES}", field="tensors")
    return tuple(table), tuple(pieces), end


def _read_tensors(table: Sequence[TensorSpec], payload: memoryview) -> dict[str, WireTensor]:
    """Return the tensors of a table that is exactly what this payload has to have."""
    if len(table) > MAX_TENSORS:
        raise TensorMismatchError(f"{len(table)} tensors; a message holds {MAX_TENSORS}", field="tensors")
    tensors: dict[str, WireTensor] = {}
    end = 0
    for spec in table:
        offset, num_bytes = spec.offset, spec.num_bytes
        if offset != _aligned(end):
            raise _mismatch(len(tensors), spec, "offset", _aligned(end))
        if num_bytes:  # an empty tensor moves neither offset nor end
            end = offset + num_bytes
        if end > payload.nbytes:
            break
        try:
            tensors[spec.name] = WireTensor(spec.dtype, spec.shape, payload[offset : offset + num_bytes])
        except TensorMismatchError as error:
            raise _mismatch(len(tensors), spec, "num_bytes", tensor_bytes(spec.dtype, spec.shape)) from error
    if end != payload.nbytes:
        raise _wrong_size(table, payload.nbytes)
    if len(tensors) != len(table):
        raise TensorMismatchError("two tensors have the same name", field="tensors")
    return tensors


def _wrong_size(table: Sequence[TensorSpec], num_payload_bytes: int) -> TensorMismatchError:
    num_bytes = max((spec.offset + spec.num_bytes for spec in table if spec.num_bytes), default=0)
    return TensorMismatchError(
        f"the table describes {num_bytes} bytes, but the payload has {num_payload_bytes}", field="tensors"
    )


def _mismatch(index: int, spec: TensorSpec, name: str, expected: int) -> TensorMismatchError:
    field = f"tensors[{index}].{name}"
    return TensorMismatchError(
        f"{field} of {spec.name!r} ({spec.dtype} {list(spec.shape)}) is {getattr(spec, name)}, "
        f"and has to be {expected}",
        field=field,
    )
