"""Settings of the two kinds of workers, as their commands parse them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.messages.base import Name, ShareName
from broker_pipeline.pictures.colour import WHITE, Colour
from broker_pipeline.pictures.rule import PictureRule
from broker_pipeline.process.host_room import Needs
from broker_pipeline.wire.edges.settings import EdgeChoice, EdgeSettings

_PICTURES = PictureRule()
PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
PositiveSeconds = PositiveFloat
Dtype = Literal["auto", "bfloat16", "float32"]
AttentionKind = Literal["auto", "sdpa", "eager"]


class ComputeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where and how a worker computes."""

    model: str
    device: str = "auto"
    dtype: Dtype = "auto"
    attention: AttentionKind = "auto"
    deterministic: bool | None = None
    """Whether what becomes of a session must not depend on what shares its batches; None: where it costs little."""
    gpu_memory_gb: PositiveFloat | None = None
    """GB (10**9 bytes) that the device counts as having, for this worker; None: all it has."""
    threads: PositiveInt | None = None
    """CPU threads of one operation; None: one where a GPU does the work, else torch's (or OMP_NUM_THREADS)."""
    verify_weights: bool = True
    """Whether weights are compared with the manifest while they are read."""
    edges: EdgeChoice = "auto"
    """Which ways beside NATS are tried for payloads."""
    edge_host: str | None = None
    """Address at which other hosts reach this worker; None: the one from which it reaches NATS."""
    edge_port: Annotated[str, Meta(pattern=r"^\d{1,5}(-\d{1,5})?$")] = "0"
    """Port for connections of other workers, or the first and last of several."""
    edge_tls: Literal["on", "off"] = "on"
    """Whether those are encrypted."""
    edge_ring_bytes: Annotated[int, Meta(ge=2**16, le=2**36)] | None = None
    """Shared memory for each process that sends here; None takes 256 MiB for a GPU, 64 MiB for a CPU."""

    @property
    def needs(self) -> Needs:
        """What the worker needs of its host."""
        return EdgeSettings(self.edges).needs


class StageSettings(ComputeSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stage worker's settings."""

    blocks: str
    name: Name | None = None
    share: ShareName = ""
    """The stages that one conductor has together; empty is a share as well."""
    kv_tokens: PositiveInt | None = None
    kv_dtype: Literal["auto", "fp8"] = "auto"
    kv_share: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Part of the free memory that KV takes where `kv_tokens` is not given."""
    max_batch_tokens: PositiveInt | None = None
    """Of one microbatch; None: 4,096, or 2,048 on GPUs of less than 32 GB."""
    max_step_sessions: Annotated[int, Meta(ge=0)] = 256
    """Sessions of the largest decode step that a GPU has as one graph."""
    max_envelopes: PositiveInt = 64
    row_buffer_bytes: PositiveInt | None = None
    """Visual rows that wait for their prefill; None: 2 GiB, or 2.5 % of a GPU."""
    row_ttl_s: PositiveSeconds = 300.0


class VisionSettings(ComputeSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A vision worker's settings."""

    name: Name = "vision-0"
    max_requests: PositiveInt = 256
    max_pictures: PositiveInt = 16
    """Pictures that are fetched and decoded at the same time; bounds the memory that pixels take."""
    max_batch_patches: PositiveInt = 12_288
    """Patches that the tower encodes in one go: enough to fill a GPU, for about as long as a decode step takes."""
    fp8_tower: bool = False
    """Whether the tower's blocks are quantised to FP8."""
    preprocess_threads: PositiveInt | None = None
    """Threads that decode, resize and cut; None takes half of the cores, from 2 to 8."""
    cache_bytes: Annotated[int, Meta(ge=0)] | None = None
    """Encoded pictures that are kept; None: 1 GiB, or 1.5 % of a GPU."""
    max_image_bytes: PositiveInt = _PICTURES.max_bytes
    max_image_pixels: PositiveInt = _PICTURES.max_pixels
    max_video_bytes: PositiveInt = _PICTURES.max_video_bytes
    max_video_s: PositiveSeconds = _PICTURES.max_video_s
    max_video_decode_s: PositiveSeconds = 60.0
    min_pixels: PositiveInt | None = None
    """What pictures are resized to at least; None leaves it to the model, as for `max_pixels`."""
    max_pixels: PositiveInt | None = None
    background: Colour = WHITE
    """What is seen behind the transparent parts of pictures."""
