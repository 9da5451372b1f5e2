"""The whole checker, short and with a fixed seed: what CI runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from broker_pipeline.errors import ConfigurationError
from tests.kit.models.tiny_artifacts import tiny_artifact
from trials.soak.command import REQUIRED
from trials.soak.faults.plan import FAULT_KINDS
from trials.soak.report import SoakReport

pytestmark = [pytest.mark.alone, pytest.mark.slow]


def processes_of(directory: Path) -> list[psutil.Process]:
    listed = psutil.process_iter(["cmdline"])
    return [p for p in listed if any(str(directory) in word for word in p.info["cmdline"] or ())]


def soak(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "broker_pipeline", "soak", "--data-dir", str(directory / "run"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def can_be_made(kind: str) -> bool:
    try:
        REQUIRED.get(kind, lambda: None)()
    except ConfigurationError:
        return False
    return True


@pytest.mark.timeout(400)
def test_a_short_soak_with_a_fixed_seed_proves_that_nothing_is_lost(tmp_path: Path) -> None:
    kinds = ",".join(kind for kind in FAULT_KINDS if can_be_made(kind))
    out = tmp_path / "report.json"
    faults = ("--faults", kinds, "--num-faults", "10", "--fault-every-s", "1.6", "--together", "0.3")
    amount = ("--jobs", "60", "--seed", "11", *faults)
    process = soak(tmp_path, *amount, "--out", str(out))
    said, _ = process.communicate()
    assert process.returncode == 0, said
    report = msgspec.json.decode(out.read_bytes(), type=SoakReport)
    assert report.is_proven
    assert all(proof.holds for proof in report.proofs)
    assert len(report.faults) >= 10
    assert report.num_jobs == 60
    assert "PROVEN" in said
    assert processes_of(tmp_path) == []


@pytest.mark.timeout(200)
def test_an_interrupted_soak_leaves_nothing(tmp_path: Path) -> None:
    amount = ("--jobs", "16", "--num-faults", "100", "--fault-every-s", "1", "--seed", "1")
    process = soak(tmp_path, *amount, "--model", str(tiny_artifact()), "--stages", "2", "--spares", "0")
    assert process.stdout is not None
    for line in process.stdout:
        if "fault 2:" in line:
            break
    assert processes_of(tmp_path), "there is something to leave"
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=150)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert processes_of(tmp_path) == []
