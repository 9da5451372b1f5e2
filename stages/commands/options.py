"""Command line options that both kinds of workers share. No torch: a command's help must come at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from broker_pipeline.config import PathType, add_options, option
from broker_pipeline.wire.edges.options import EDGE_OPTIONS

F = TypeVar("F", bound=Callable[..., Any])

_COMPUTE_OPTIONS = (
    option(
        "--model",
        required=True,
        type=PathType(exists=True, file_okay=False),
        help="Artifact directory, made by `broker-pipeline export`.",
    ),
    option("--device", default="auto", help="auto (first GPU, else CPU), cpu, cuda, or cuda:N."),
    option(
        "--dtype",
        default="auto",
        type=click.Choice(["auto", "bfloat16", "float32"]),
        help="Dtype to compute in; auto is the artifact's. All workers of a pipeline need the same.",
    ),
    option(
        "--attention",
        default="auto",
        type=click.Choice(["auto", "sdpa", "eager"]),
        help="auto uses kernels for GPUs where there is one (bfloat16), and sdpa elsewhere; eager rounds as the "
        "reference implementation does, and is slower.",
    ),
    option(
        "--deterministic/--no-deterministic",
        default=None,
        help="Compute batch-invariantly: a session does not depend on what shares its batches. All workers of a "
        "pipeline need it.  [default: with the kernels for GPUs, unless weights are in FP8: elsewhere it is slow]",
    ),
    option(
        "--gpu-memory-gb",
        default=None,
        type=click.FloatRange(min=0, min_open=True),
        help="Take the GPU for one of so many GB (10^9 bytes), to see what a smaller one would do; what others hold of "
        "it counts.  [default: all it has]",
    ),
    option(
        "--threads",
        default=None,
        type=click.IntRange(min=1),
        help="CPU threads of one operation.  [default: 1 where a GPU does the work, else torch's]",
    ),
    option(
        "--verify-weights/--no-verify-weights",
        default=True,
        help="Compare weights with the artifact's hashes while they are read; once, unless a file changes.",
    ),
    *EDGE_OPTIONS,
)


def compute_options(function: F) -> F:
    """Add the options of `ComputeSettings` to a command."""
    return add_options(function, _COMPUTE_OPTIONS)
