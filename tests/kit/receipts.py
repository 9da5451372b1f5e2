"""Receipts: what a tool of these tests has seen, as JSON; `docs/receipts` keeps those that documents link."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from broker_pipeline.tools.machine import MachineFacts


def write_receipt(path: Path | None, seen: dict[str, Any]) -> None:
    """Write what was seen, by which command and on which machine."""
    program = Path(sys.argv[0]).relative_to(Path.cwd()).with_suffix("")
    module = ".".join(program.parts).removesuffix(".__main__")
    command = " ".join(["python -m", module, *sys.argv[1:]])
    receipt = {"command": command, "machine": MachineFacts.read(), **seen}
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(receipt), indent=2) + b"\n")
