"""Options that several benchmarks share: whose weights, and how much work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from broker_pipeline.config import add_options, refuse_nan
from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.demo.pictures import trained_model
from trials.bench.shape_artifact import write_shape_artifact

F = TypeVar("F", bound=Callable[..., Any])

POSITIVE = click.IntRange(min=1)


def repeated(
    flag: str, name: str, default: tuple[int, ...], what: str, type_: click.IntRange = POSITIVE
) -> Callable[[F], F]:
    """Return an option for several numbers, `what` they are, each given by itself."""
    text = f"{what}; may be given several times."
    return click.option(flag, name, multiple=True, type=type_, default=default, show_default=True, help=text)


unread_option = click.option(
    "--unread",
    "num_unread",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Further clients that ask for a stream and do not read it.",
)


quantize_option = click.option(
    "--quantize", type=click.Choice(["fp8"]), help="The decoder's matrices in FP8, as `export --quantize` makes them."
)


kv_dtype_option = click.option(
    "--kv-dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "fp8"]),
    help="Dtype of keys and values, as for `stage`: fp8 makes room for nearly twice the sessions.",
)


def seconds_option(function: F) -> F:
    """Add how long each row of a benchmark in real time is measured."""
    add = click.option(
        "--seconds",
        default=10.0,
        show_default=True,
        type=click.FloatRange(min=0.1),
        callback=refuse_nan,
        help="To measure, for each row, once it is warm.",
    )
    return add(function)


def step_options(what: str) -> Callable[[F], F]:
    """Return the options of a benchmark of a shape's steps by themselves; `what` a step is called."""
    number = f"{what} of each kind"
    options = (
        click.option("--steps", "num_steps", default=30, show_default=True, type=POSITIVE, help=f"{number}."),
        click.option(
            *("--warm-up", "num_warm_up"),
            default=5,
            show_default=True,
            type=click.IntRange(min=0),
            help=f"{number} before those that are timed.",
        ),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
    )
    return lambda function: add_options(function, options)


def work_options(function: F) -> F:
    """Add the options of a model's shape and of `WorkSettings`, under the names of its fields."""
    return add_options(function, _OPTIONS)


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--shape", metavar="NAME", help="Random weights in the shape of 2B, 4B, 8B, 32B, 30B-A3B, tiny, …"),
    click.option("--layers", "num_layers", type=POSITIVE, help="With --shape: only so many layers of it."),
    quantize_option,
    click.option(
        "--pictures", "num_pictures", default=64, show_default=True, type=POSITIVE, help="Pictures of a round."
    ),
    click.option("--picture-side", default=128, show_default=True, type=POSITIVE, help="Pixels; 448 makes 196 tokens."),
    click.option(
        "--output-tokens",
        "num_output_tokens",
        default=64,
        show_default=True,
        type=POSITIVE,
        help="Tokens of every caption.",
    ),
    click.option(
        *("--concurrency", "--batch", "num_in_flight"),
        default=32,
        show_default=True,
        type=POSITIVE,
        help="Captions at the same time.",
    ),
    click.option(
        *("--rounds", "num_rounds"),
        default=3,
        show_default=True,
        type=POSITIVE,
        help="Rounds after the one that warms up.",
    ),
    click.option("--prompt", default="Describe this image in one sentence.", show_default=True),
)


async def shape_or_demo(shape: str | None, num_layers: int | None, quantize: str | None, directory: Path) -> Path:
    """Make the artifact of a shape, or of the demo's model where `shape` is None, in `directory`."""
    if shape is None:
        say("the demo's model")
        return await make_artifact(directory, trained_model(), ("--quantize", quantize) if quantize else ())
    say(f"random weights in the shape of {shape}")
    return write_shape_artifact(directory / "artifact", shape, num_layers, in_fp8=quantize == "fp8")


def say(line: str) -> None:
    """Tell on standard error how far a benchmark is."""
    click.echo(line, err=True)
