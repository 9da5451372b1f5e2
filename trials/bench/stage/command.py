"""`broker-pipeline bench stage`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from broker_pipeline.config import refuse_unread
from broker_pipeline.tools.machine import MachineFacts
from export.synthetic.shapes import SHAPE_NAMES
from trials.bench.options import POSITIVE, kv_dtype_option, quantize_option, repeated, step_options
from trials.bench.report import BenchReport, Column, json_option, show
from trials.bench.spread import shown
from trials.bench.stage.rows import StageBenchSettings
from trials.bench.stage.step_timing import measure_stage

_COLUMNS: list[Column] = [
    ("", lambda row: row.kind),
    ("sessions", lambda row: row.num_sessions),
    ("tokens", lambda row: f"{row.num_tokens:,}"),
    ("step, ms (p10-p90)", lambda row: row.step_s.scaled(1e3)),
    ("of it launching", lambda row: shown(row.launch_s.median * 1e3)),
    ("one waiting", lambda row: shown(row.queued_s.median * 1e3) if row.queued_s else ""),
    ("on the GPU", lambda row: shown(row.device_s.median * 1e3) if row.device_s else ""),
    ("tokens/s", lambda row: shown(row.tokens_per_s)),
    ("floor, ms", lambda row: f"{shown(row.floor_s * 1e3)} ({row.bound})"),
    ("floor of step", lambda row: f"{100 * row.floor_share:.0f} %"),
]


def _parse_mixed(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    pairs = []
    for text in texts:
        words = text.split(":")
        if len(words) != 2 or not all(word.isdigit() and int(word) > 0 for word in words):
            raise click.BadParameter(f"{text!r} is not SESSIONS:PROMPTS, such as 128:2")
        pairs.append((int(words[0]), int(words[1])))
    return tuple(pairs)


@click.command(name="stage")
@click.option("--shape", type=click.Choice(SHAPE_NAMES), default="demo", show_default=True, help="Sizes of the model.")
@click.option("--layers", type=POSITIVE, help="Only the first layers, without the head.  [default: all, with it]")
@repeated("--batch", "batch_sizes", (1, 16, 64), "Sessions of a decode step")
@click.option("--context", default=300, show_default=True, type=POSITIVE, help="Tokens of a session, and of a prompt.")
@repeated("--prefill", "prefill_prompts", (1, 8), "Prompts that are prefilled together")
@click.option(
    "--mixed",
    multiple=True,
    callback=_parse_mixed,
    metavar="SESSIONS:PROMPTS",
    help="Also a step that decodes so many sessions and prefills so many prompts; may be given several times.",
)
@step_options("Steps")
@click.option(
    "--deterministic/--no-deterministic",
    "is_deterministic",
    default=None,
    help="Compute batch-invariantly, or not, as a worker with this flag.",
)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="[default: the shape's]")
@quantize_option
@kv_dtype_option
@click.option(
    "--fp8-product",
    type=click.Choice(["auto", "library", "kernel", "weight-only"]),
    default="auto",
    show_default=True,
    help="With --quantize on a GPU: what multiplies many rows. auto is the library where it can; weight-only keeps "
    "rows in bfloat16.",
)
@click.option("--threads", "num_threads", type=POSITIVE, help="CPU threads of one operation.  [default: torch's own]")
@json_option
def command(json_path: Path | None, layers: int | None, **options: Any) -> None:
    """Time a stage's steps, alongside what memory and arithmetic of this device allow.

    The weights are random and made on the device; so are the keys and values that sessions hold. A "step"
    is timed by itself, from a microbatch on the host to its tokens there; "launching" is the host's part of it. "One
    waiting" is the time for each of many decode steps when the next is enqueued while the last is computed, which is
    how a pipeline drives a GPU. "On the GPU" is what its own clock says of a step by itself.

    The floor is the larger of two times: that of reading weights, keys and values once, at the rate of a large copy;
    and that of the matrix products, at the rate of a large one. Both rates are measured in the same run; with
    --quantize the second still is that of products in bfloat16.

    \b
    Examples:
      broker-pipeline bench stage --shape 8B --layers 2 --batch 1 --batch 8
      broker-pipeline bench stage --shape 8B --device cuda --batch 128 --mixed 128:2 --context 219
      broker-pipeline bench stage --shape 8B --quantize fp8 --device cuda --batch 1 --batch 256
      broker-pipeline bench stage --shape 30B-A3B --device cuda --batch 1 --batch 64 --batch 256 --json moe.json
    """
    if options["quantize"] is None:
        refuse_unread("fp8_product", why="is for FP8: add --quantize fp8")
    machine = MachineFacts.read()
    settings = StageBenchSettings(num_layers=layers, **options)
    report = measure_stage(settings)
    rates = report.rates
    notes = (
        f"{settings.shape}, {layers or 'all'} layers, {report.num_weight_bytes / 1e9:.3g} GB of weights",
        f"ready {report.load_s:.1f} s after the first weight was drawn",
        f"copy {rates.bytes_per_s / 1e9:,.1f} GB/s (read and written), product {rates.flops_per_s / 1e12:,.3g} TFLOP/s",
    )
    facts = msgspec.to_builtins(settings) | {
        "rates": msgspec.to_builtins(rates),
        "num_weight_bytes": report.num_weight_bytes,
        "load_s": round(report.load_s, 3),
    }
    show(
        BenchReport(bench="stage", machine=machine, settings=facts, rows=report.rows, notes=notes), _COLUMNS, json_path
    )
