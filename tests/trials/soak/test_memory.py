"""Resident memory, and whether it is flat."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import psutil
import pytest

from trials.bench.cpu_time import resident_bytes
from trials.soak.memory import MemoryLog, growth_of

MIB = 1024 * 1024


def test_resident_memory_is_what_psutil_reads() -> None:
    assert resident_bytes(os.getpid()) == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_a_process_that_is_gone_has_none() -> None:
    assert resident_bytes(2**22 + 1) == 0


def test_samples_become_a_table(tmp_path: Path) -> None:
    log = MemoryLog()
    log.take(0.5, {"me": os.getpid(), "gone": 2**22 + 1, "not-started": None})
    log.take(1.0, {"me": os.getpid()})
    log.write_csv(tmp_path / "memory.csv")
    with (tmp_path / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seconds"], row["process"]) for row in rows] == [("0.50", "me"), ("1.00", "me")]
    assert int(rows[0]["rss_bytes"]) > MIB


def test_warming_up_is_no_growth_and_a_leak_is() -> None:
    warm = [(float(second), min(second, 10) * MIB) for second in range(60)]
    leaking = [(float(second), (10 + second) * MIB) for second in range(60)]
    assert growth_of("warm", warm, allowed_bytes=MIB).is_flat
    leak = growth_of("leaking", leaking, allowed_bytes=MIB)
    assert not leak.is_flat
    assert leak.growth_bytes == pytest.approx(20 * MIB, rel=0.1)
    assert growth_of("allowed", leaking, allowed_bytes=25 * MIB).is_flat
