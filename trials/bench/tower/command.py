"""`broker-pipeline bench tower`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from broker_pipeline.tools.machine import MachineFacts
from export.synthetic.shapes import SHAPE_NAMES
from trials.bench.options import repeated, step_options
from trials.bench.report import BenchReport, Column, json_option, show
from trials.bench.spread import shown
from trials.bench.tower.measurement import TowerBenchSettings, measure_tower

_COLUMNS: list[Column] = [
    ("", lambda row: row.way),
    ("pictures", lambda row: row.num_pictures),
    ("patches", lambda row: f"{row.num_patches:,}"),
    ("computed", lambda row: f"{row.num_computed:,}"),
    ("batch, ms (p10-p90)", lambda row: row.step_s.scaled(1e3)),
    ("of it launching", lambda row: row.launch_s.scaled(1e3)),
    ("in turn, ms", lambda row: shown(row.in_turn_s * 1e3)),
    ("a picture, ms", lambda row: shown(row.in_turn_s / row.num_pictures * 1e3)),
]


@click.command(name="tower")
@click.option("--shape", type=click.Choice(SHAPE_NAMES), default="demo", show_default=True, help="Sizes of the model.")
@repeated("--pictures", "batches", (1, 4, 15), "Pictures of a batch")
@repeated("--side", "sides", (448,), "Pixels of a picture's sides, of several one after the other")
@step_options("Batches")
@click.option(
    "--max-batch-patches", default=12_288, show_default=True, type=click.IntRange(min=4), help="As of vision workers."
)
@click.option("--fp8", is_flag=True, help="With its blocks in FP8, as `vision --fp8-tower` has it.")
@json_option
def command(json_path: Path | None, **options: Any) -> None:
    """Time the vision tower by itself: as graphs where the device has them, and launched kernel by kernel.

    "In turn" is what a batch takes when the next ones are enqueued meanwhile. The weights are random.

    \b
    Examples:
      broker-pipeline bench tower --shape tiny --pictures 2 --side 128
      broker-pipeline bench tower --shape 8B --device cuda --pictures 1 --pictures 15 --fp8 --json tower.json
    """
    machine = MachineFacts.read()
    settings = TowerBenchSettings(**options)
    report = measure_tower(settings)
    facts = msgspec.to_builtins(settings) | {"capture_s": report.capture_s, "graph_bytes": report.graph_bytes}
    graphs = f"graphs: built in {report.capture_s:.1f} s, {report.graph_bytes / 2**20:,.0f} MiB"
    notes = (graphs,) if report.graph_bytes else ()
    show(
        BenchReport(bench="tower", machine=machine, settings=facts, rows=report.rows, notes=notes),
        _COLUMNS,
        json_path,
    )
