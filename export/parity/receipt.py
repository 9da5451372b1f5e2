"""What a comparison found, and of what: kept as JSON, without names of machine, user or directory."""

from __future__ import annotations

import resource
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import msgspec

from broker_pipeline.artifact_manifest import Dtype
from broker_pipeline.tools.machine import MachineFacts
from export.parity.part import Part

FORMAT_VERSION = 1
_DISTRIBUTIONS = ("broker-pipeline", "transformers", "torch", "safetensors", "tokenizers", "pillow")
_STATUS = Path("/proc/self/status")


class Greedy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Greedy tokens of a scene: how many are the judge's, up to the end or to the first other one.

    That one is a tie where the judge's logits of both are within the tolerance of each other.
    """

    scene: str
    num_tokens: int
    num_equal: int
    is_tie: bool = False

    @property
    def is_within(self) -> bool:
        """Whether no token was another one, but for a tie."""
        return self.num_equal == self.num_tokens or self.is_tie


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was compared: SHA-256 of the files alongside the weights; the fingerprint covers these and every tensor."""

    fingerprint: str
    dtype: Dtype
    num_layers: int
    num_experts: int
    weights_bytes: int
    hashes: dict[str, str]


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`seconds` are those of all runs together, `peak_memory_bytes` the most that one of them had resident."""

    format_version: int = FORMAT_VERSION
    is_within: bool
    first_beyond: str | None
    """The first part beyond its tolerance."""
    model: Model
    num_prompt_tokens: int
    num_patches: int
    greedy: tuple[Greedy, ...]
    greedy_left_out: str | None
    """Why there are no greedy tokens."""
    seconds: float
    peak_memory_bytes: int
    versions: dict[str, str]
    machine: MachineFacts
    worst: dict[str, Part]
    """The part of each kind, such as `layers`, that differs most."""
    parts: tuple[Part, ...]


def read_versions() -> dict[str, str]:
    """Return the versions of what computes."""
    resizer = ("torchvision",) if find_spec("torchvision") else ()
    return {name: metadata.version(name) for name in (*_DISTRIBUTIONS, *resizer)}


def peak_memory_bytes() -> int:
    """Return the most memory that this process ever had resident, maps of files included."""
    if not _STATUS.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss of a child also counts its parent from before the exec
    return int(_STATUS.read_text().partition("VmHWM:")[2].split()[0]) * 1024
