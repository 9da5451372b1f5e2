"""Types and the base of everything that parts of broker-pipeline say to each other, as frozen structs.

    WireStruct ─► WireMessage ─► PipelineMessage ─► FencedMessage
                  version        pipeline           fingerprint
                  tensors                           epoch

Each struct checks its ranges while it is decoded, so that what code holds is what the contract allows. What asks for
something refuses fields that it does not know; what tells of something (a record, an answer, a sign of life) passes
them over, since the sender may be of a later release of the same contract version. Tensors travel alongside the
metadata (see `wire.codec`); here is only their table.

Sizes are in bytes, times in seconds. `session` is the id of one generation; today a job has exactly one, and they
share their id.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

CONTRACT_VERSION = 3

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
TenantName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}$")]
ShareName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}$")]
"""A set of stages that one conductor has at a time; empty where nobody divides them."""
SessionRef = Annotated[str, Meta(min_length=1, max_length=64)]
"""The name of a session that was opened, and checked, as a `Name`; any other belongs to no session. Hundreds come in
one message, and patterns for them would take two thirds of the time that it is decoded in."""
Subject = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.$-]{1,255}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0, le=2**40)]
PositiveCount = Annotated[int, Meta(ge=1, le=2**40)]
Seconds = Annotated[float, Meta(ge=0)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
WireDtype = Literal["bfloat16", "float32", "int32"]


class WireStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, gc=False):
    """Base of everything here: immutable, strict, compact; never in a cycle, so that the collector may pass it over."""


class WireReport(WireStruct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Base of what tells of something: a later release may tell more."""


class TensorSpec(WireStruct, frozen=True, kw_only=True):
    """One row of the tensor table. `offset` is 16-byte aligned; the bytes are little-endian and C-contiguous."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_.]{1,64}$")]
    dtype: WireDtype
    shape: Annotated[tuple[Count, ...], Meta(max_length=4)]
    offset: Count
    num_bytes: Count


class WireMessage(WireStruct, frozen=True, kw_only=True):
    """Base of what travels over NATS by `wire.codec`: it says its version first, and may carry tensors."""

    version: int = CONTRACT_VERSION
    tensors: tuple[TensorSpec, ...] = ()


class PipelineMessage(WireMessage, frozen=True, kw_only=True):
    """Base of what is meant for one pipeline."""

    pipeline: Name


class FencedMessage(PipelineMessage, frozen=True, kw_only=True):
    """Base of what is meant for one artifact, and comes from one epoch: a stage refuses what is older than it knows."""

    fingerprint: str
    epoch: Count
