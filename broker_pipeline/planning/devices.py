"""What devices, edges and the host cost: every calibrated number of the planner, with its source.

Rates are what our own kernels reach, not what a data sheet says, so that a step's time is

    hypot(weights / bytes_per_s, multiplications / flops_per_s) + KV / kv rate + layers * layer_s

The two terms overlap in part, and hypot is where measured steps lie: tests/broker_pipeline/planning/test_measured.py
holds the figures of docs/benchmarks.md against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker_pipeline.messages.edges import Carrier

STEADY_SHARE = 0.9
"""Part of the time that the busiest device computes while the pipeline is full. Whole rounds of 1,024 and 2,048
captions of 8B with 256 sessions on one H100, 73.4 and 79.8 a second, are 92 and 90 with the ramp taken out (below); 99
is what computing alone would allow."""
ROUND_SHARE = 0.83
"""Part of that which a round shows from its first caption to its last, where its length is not known: it takes as long
as its captions and once more its sessions (`Workload.round_share`), here about five times as many captions."""
BUSY_SHARE = STEADY_SHARE * ROUND_SHARE
"""Both. Of what computing alone would allow, whole rounds of 8B on one H100 gave 0.85, of 30B-A3B 0.67; four stages of
235B were 64 to 82 % busy. One number for all of them, to be measured again per device and model."""
MEMORY_MARGIN = 0.03
"""Of a GPU, left by a stage: `stages/compute/fused/loading.py`."""
ROW_BUFFER_BYTES, ROW_BUFFER_SHARE = 2 * 2**30, 0.025
CACHE_BYTES, CACHE_SHARE = 2**30, 0.015
"""Visual rows that wait at a stage, and encoded pictures that are kept: so many bytes, or less of a small GPU."""
STAGE_HOST_S = 0.002
"""From a microbatch on a stage's host to its kernels, and from its result to the message: 1.3 to 1.6 ms to launch a
graph, 0.2 of copies (benchmarks.md, "What a profile shows")."""
LAUNCH_S = 0.004
PICTURE_HOST_S = 0.006
"""What a stage's one Python process takes for a microbatch, and for each picture that is encoded in it, one after the
other: two stages of 8B on two H200 gave 135 captions/s where the first process encodes all pictures, four on four H100
99.6 and 88, and 137 where all four do (benchmarks.md, "On four H100")."""
ENCODING_STAGE_S = 0.0033
"""What a microbatch waits longer at each stage whose process encodes as well. Four stages of 8B on four H100 in one
run: 46.9 ms of a round of tokens were not computing with vision in each stage's process, 33.6 with vision beside each
(benchmarks.md, "Vision beside the stages")."""
CONDUCTOR_ROUND_S = 0.0025
"""From a result to the next envelope of its route (the same profile)."""
CONDUCTOR_CAPTION_S = 0.003
"""Processor of the conductor for a caption of 64 tokens, all in (benchmarks.md, "The whole system")."""
GATEWAY_CAPTION_S = 0.005
"""Processor of a gateway for a caption: the same table; 238/s on two cores that client and servers shared."""
PROCESS_LOAD = 0.8
"""Of a core, what a process with one event loop may have to do before jobs queue up in it."""
SYSTEM_CAPTION_S = 0.028
"""Processor of all programs together for a caption through one stage, without computing: 32 ms with a GPU, on a CPU
51 of which 27 compute (benchmarks.md)."""
FURTHER_STAGE_CAPTION_S = 0.010
"""The same, for each further stage: 7 ms with GPUs (four stages 53 ms), 14 on a CPU (three stages 80 ms)."""


_EXPERT_WEIGHTS = 3 * 2048 * 768  # of an expert of 30B-A3B
_EXPERT_POWER = 0.13
"""By which products with larger experts are faster: prefill of 12 layers of 235B, whose experts have four times the
weights, has 0.55 of the rate where 30B-A3B has 0.46. Smaller and larger ones were not measured, and count as these."""
_LARGEST_EXPERT = 4.0  # of `_EXPERT_WEIGHTS`


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. `num_slots` workers compute on it at the same time at full speed: the cores of a processor."""

    name: str
    memory_bytes: int
    bytes_per_s: float
    flops_per_s: float
    kv_share: float = 0.85
    """KV's rate, of `bytes_per_s`: attention reads 2.5 of 2.96 TB/s on an H100."""
    expert_share: float = 0.45
    """Rate of products with experts as large as those of 30B-A3B, of `flops_per_s`: its prefill has 0.46; whole runs
    would need less."""
    fp8_gain: float = 1.6
    """Products whose weights and rows are in FP8, of that rate: 25.3 ms of a step of 8B took 15.9, without quantising
    the rows (benchmarks.md, "What fills one H200")."""
    fp8_expert_gain: float = 1.3
    """The same of products with experts, whose rows are quantised anew for each: whole runs of 30B-A3B and 235B."""
    tower_share: float = 0.63
    """The tower's, of `flops_per_s`: 1.88 ms for a picture of 196 tokens with the tower of 8B."""
    layer_s: float = 17e-6
    """What a layer of a step takes beside products and attention: decode of one session, 5.72 ms for 8B."""
    expert_layer_s: float = 30e-6
    """The same, with experts: decode steps of 30B-A3B less their floors."""
    num_slots: int = 1
    is_gpu: bool = True
    is_estimated: bool = True
    """Whether its rates are not measured: guesses by name, or taken from other rates."""

    def expert_flops_per_s(self, num_weights: int) -> float:
        """Return the rate of products with experts of so many weights each."""
        gain: float = min(max(num_weights / _EXPERT_WEIGHTS, 1.0), _LARGEST_EXPERT) ** _EXPERT_POWER
        return self.flops_per_s * self.expert_share * gain


_H100 = Device(name="H100", memory_bytes=85 * 10**9, bytes_per_s=2.96e12, flops_per_s=600e12, is_estimated=False)
"""A copy in the run of benchmarks.md; 5.29 ms for the prompt of a caption of 8B."""
_H200 = replace(
    _H100, name="H200", memory_bytes=150 * 10**9, bytes_per_s=4.24e12, flops_per_s=720e12, is_estimated=True
)
"""By its data sheet 1.43 times the H100's memory rate; products 1.2 times, which is what its captions/s need (103.3 and
99.4 where an H100 has 85.1 and 78.7): inferred from whole systems, its parts were not measured alone."""

# Memory rate (TB/s) and dense bf16 rate (TFLOP/s) of data sheets; what our kernels reach of an H100's is taken of each.
_SHEETS: Mapping[str, tuple[float, float]] = {
    "B200": (8.0, 2250),
    "GH200": (4.0, 989),
    "H100 PCIe": (2.0, 756),
    "H20": (4.0, 148),
    "A100": (2.0, 312),
    "A800": (2.0, 312),
    "L40S": (0.864, 362),
    "L40": (0.864, 181),
    "L4": (0.300, 121),
    "A40": (0.696, 150),
    "A10": (0.600, 125),
    "A6000": (0.768, 155),
    "RTX 6000 Ada": (0.960, 182),
    "RTX PRO 6000": (1.79, 500),
    "5090": (1.79, 210),
    "4090": (1.01, 165),
    "3090": (0.936, 71),
    "V100": (0.9, 112),
    "T4": (0.320, 65),
}
_H100_SHEET = (3.35, 989)
_UNKNOWN_SHEET = (0.5, 80)


def is_known_gpu(name: str) -> bool:
    """Whether `gpu` knows rates by this name, where it guesses otherwise."""
    return any(_is_named(key, name) for key in (_H100.name, _H200.name, *_SHEETS))


def gpu(name: str, memory_bytes: int) -> Device:
    """Return a GPU by the name that its driver gives it: measured, scaled from its data sheet, or a cautious guess."""
    for known in (_H200, _H100):
        if _is_named(known.name, name) and "PCIe" not in name and "GH200" not in name:
            return replace(known, memory_bytes=memory_bytes)
    matching = (_SHEETS[key] for key in sorted(_SHEETS, key=len, reverse=True) if _is_named(key, name))
    bandwidth, flops = next(matching, _UNKNOWN_SHEET)
    return replace(
        _H100,
        name=name,
        memory_bytes=memory_bytes,
        bytes_per_s=_H100.bytes_per_s * bandwidth / _H100_SHEET[0],
        flops_per_s=_H100.flops_per_s * flops / _H100_SHEET[1],
        is_estimated=True,
    )


def processor(num_cores: int, memory_bytes: int) -> Device:
    """Return a host's processor; rates are of one core, from benchmarks.md, "One stage against the device"."""
    return Device(
        name="CPU",
        memory_bytes=memory_bytes,
        bytes_per_s=9e9,
        flops_per_s=150e9,
        kv_share=0.5,
        tower_share=0.5,
        layer_s=350e-6,
        expert_layer_s=700e-6,
        num_slots=num_cores,
        is_gpu=False,
    )


def whole_processor(num_cores: int, memory_bytes: int) -> Device:
    """Return a host's processor as one worker uses it, with a thread on each core; it scales as if cores were free."""
    core = processor(1, memory_bytes)
    return replace(
        core,
        name=f"CPU, {num_cores} core{'s' * (num_cores > 1)}",
        bytes_per_s=num_cores * core.bytes_per_s,
        flops_per_s=num_cores * core.flops_per_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """How a payload gets from one worker to the next."""

    latency_s: float
    bytes_per_s: float
    """Of one hop."""
    total_bytes_per_s: float
    """Of all hops together."""


TCP_END_BYTES_PER_S = 1.9e9
"""What the two ends of an encrypted `tcp` edge carry at most: 16 MiB on the loopback interface, in the same run."""
ENVELOPE_TOKEN_BYTES, RESULT_TOKEN_BYTES, PROMPT_TOKEN_BYTES = 110, 85, 16
"""Of messages that go by the broker, for each session of a step, and for each further token of a prompt: the messages
of `bench hop` with 256 sessions have 28,240 and 21,760 bytes."""

EDGES: Mapping[Carrier, Edge] = {
    # `bench edges` on 64 cores (receipts/edges-64-cores.json): 8 KiB there and an answer, which is more than one way;
    # 16 MiB with several under way. No bound that hops share is known. `shm` was measured before a ring's pages were
    # mapped at once; a GPU's own copies to and from it are in STAGE_HOST_S.
    "shm": Edge(latency_s=220e-6, bytes_per_s=6.0e9, total_bytes_per_s=float("inf")),
    # Encrypted, its ends carry more; this is what a network of 10 Gbit/s leaves of it. On 1 Gbit/s and 1 ms between
    # namespaces it kept 0.99 of the wire (benchmarks.md).
    "tcp": Edge(latency_s=200e-6, bytes_per_s=1.2e9, total_bytes_per_s=float("inf")),
    # 3 MiB one by one, and 16 MiB with several under way: all of them through one server.
    "nats": Edge(latency_s=140e-6, bytes_per_s=0.94e9, total_bytes_per_s=1.9e9),
}


def _is_named(key: str, name: str) -> bool:
    """Whether a GPU's name has `key` as a word of its own: L4 is not in L40S."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(key)}(?![A-Za-z0-9])", name) is not None
