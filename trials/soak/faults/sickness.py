"""Makes a worker sick that runs behind `sick_worker`, and well again."""

from __future__ import annotations

import sys
from pathlib import Path


def command(path: Path) -> tuple[str, ...]:
    """Return what a worker's command begins with so that it looks into a file."""
    return sys.executable, "-m", "trials.soak.faults.sick_worker", str(path)


def sicken(path: Path, sickness: str) -> None:
    """Have a worker fall ill: `fail`, or seconds."""
    whole = path.with_suffix(".new")
    whole.write_text(sickness)
    whole.rename(path)


def heal(path: Path) -> None:
    """Have it be well again."""
    path.unlink(missing_ok=True)
