"""`scripts/bench-planned-hosts` as a person runs it, with the demo's shape and few pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.documents import ROOT
from tests.kit.running.netlab import is_possible

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not is_possible(), reason="network namespaces need root and /dev/net/tun"),
]

MODEL = ["--shape", "demo", "--layers", "5", "--memory-gb", "0.0088"]
WORK = ["--pictures", "32", "--concurrency", "8", "--output-tokens", "16"]


def test_captions_over_planned_hosts_come_about_as_fast_as_the_plan_says(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/bench-planned-hosts", *MODEL, *WORK, "--json", str(tmp_path / "report.json")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=280)
    [row] = json.loads((tmp_path / "report.json").read_bytes())["rows"]
    predicted, measured = row["predicted"]["captions_per_s"], row["captions_per_s"]["median"]
    assert measured / 3 < predicted < 3 * measured, "the model is small: messages, not products, take most of the time"
    for port in row["ports"].values():
        for count in port.values():
            assert count["predicted"] > 0
            assert count["measured"] > count["predicted"], "headers come on top"
