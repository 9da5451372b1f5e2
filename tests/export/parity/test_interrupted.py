"""An interrupted comparison goes on where it stopped; only its own work counts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from broker_pipeline.exit_codes import INTERRUPTED
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.models.tiny_models import tiny_checkpoint

MODEL = {"num_layers": 60, "dtype": torch.bfloat16}


def start(artifact: Path, checkpoint: Path, receipt: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ["export", "verify", artifact, "--parity", checkpoint, "--receipt", receipt, "--tokens", "0", *options]
    return subprocess.Popen(
        # Behind this test, which has to read what it says before all is done.
        ["nice", "-n", "19", sys.executable, "-m", "broker_pipeline", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_same_command_goes_on(tmp_path, compare):
    artifact, checkpoint, receipt = tiny_artifact(**MODEL), tiny_checkpoint(**MODEL), tmp_path / "receipt.json"
    with start(artifact, checkpoint, receipt) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("5/"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == INTERRUPTED
    assert "the same command goes on from there" in "".join(lines)
    unfinished = tmp_path / "receipt.json.unfinished"
    assert unfinished.exists()
    assert not receipt.exists()
    _, _, output = compare(artifact, checkpoint)
    kept = re.findall(r"^(\d+)/63 kept (\S+)", output, re.MULTILINE)
    assert len(kept) >= 5
    assert [int(number) for number, _ in kept] == list(range(1, len(kept) + 1))
    assert f"{len(kept) + 1}/63 equal layers." in output
    assert not unfinished.exists()
    parts = json.loads(receipt.read_text())["parts"]
    assert len(parts) == len({part["name"] for part in parts})
    assert all(part["difference"]["num_different"] == 0 for part in parts if part["name"].startswith("layers."))


@pytest.mark.parametrize("content", [b"", b"nothing that torch wrote", b"PK\x03\x04"])
def test_damaged_work_is_done_again(tmp_path, compare, content):
    (tmp_path / "receipt.json.unfinished").write_bytes(content)
    model = {"num_layers": 3, "dtype": torch.bfloat16}
    code, _, output = compare(tiny_artifact(**model), tiny_checkpoint(**model))
    assert code == 0
    assert "kept" not in output
