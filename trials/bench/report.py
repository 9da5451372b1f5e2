"""What a benchmark hands out: a table for people, JSON for whoever compares runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from broker_pipeline.config import PathType
from broker_pipeline.process.terminal import make_console, plain_table
from broker_pipeline.tools.machine import MachineFacts

Column = tuple[str, Callable[[Any], object]]
"""A heading, and what stands under it for a row."""

json_option = click.option(
    "--json",
    "json_path",
    type=PathType(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the report as JSON.",
)


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what was measured, where, by which command."""

    bench: str
    command: str = msgspec.field(default_factory=lambda: " ".join(["broker-pipeline", *sys.argv[1:]]))
    """What was typed, without the path of the program."""
    machine: MachineFacts
    settings: dict[str, Any]
    rows: Sequence[Any]
    notes: tuple[str, ...] = ()


def show(report: BenchReport, columns: Sequence[Column], json_path: Path | None) -> None:
    """Print a report as a table, and write it to `json_path` where that is given."""
    console = make_console()
    show_table(f"bench {report.bench}", report.rows, columns)
    console.print(f"{report.machine}", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(note, markup=False, soft_wrap=True)
    save(report, json_path)


def show_table(title: str, rows: Sequence[Any], columns: Sequence[Column]) -> None:
    """Print rows as a table."""
    headings = [heading for heading, _ in columns]
    table = plain_table(*headings, title=title, right=headings[1:], no_wrap=False)
    for row in rows:
        table.add_row(*(str(cell(row)) for _, cell in columns))
    make_console().print(table)


def save(report: msgspec.Struct, json_path: Path | None) -> None:
    """Write a report to `json_path` where that is given."""
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
