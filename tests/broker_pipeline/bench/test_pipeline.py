import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_whole_system_and_one_process_do_the_same_work(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.json"
    arguments = ["bench", "pipeline", "--shape", "tiny", "--stages", "2", "--pictures", "4", "--output-tokens", "4"]
    arguments += ["--concurrency", "2", "--rounds", "1", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "broker_pipeline", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert rows[0]["name"].startswith("one process")
    assert rows[-1]["name"] == "whole system, 2 stages"
    assert max(row["share"] for row in rows if row["name"].startswith("one process")) == 1
    assert {"gateway", "nats", "redis", "conductor-0", "vision-0", "stage-0", "stage-1"} <= set(rows[-1]["cpu_s"])
