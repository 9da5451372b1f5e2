"""The README's commands, typed as they stand there: from a checkout to captions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker_pipeline.tools.local.place import free_port
from tests.kit.documents import ROOT, code_blocks
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_newcomer_has_a_server_and_captions(tmp_path: Path) -> None:
    server, client = (block.splitlines() for block in code_blocks("README.md", "## Use it")[:2])
    (tmp_path / "broker_pipeline").symlink_to(ROOT / "broker_pipeline")  # as in a checkout
    port, bin_dir = free_port(), Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "BROKER_PIPELINE_PORT": str(port),
        "BROKER_PIPELINE_GATEWAY": f"http://127.0.0.1:{port}",
    }

    def typed(line: str) -> str:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    started = time.monotonic()
    typed(server[0])
    output = tmp_path / "up.out"
    with output.open("wb") as stream:
        up = subprocess.Popen(f"exec {server[1]}", shell=True, cwd=tmp_path, env=env, stdout=stream, stderr=stream)
    try:
        wait_until(lambda: "ready: http" in output.read_text(), timeout_s=60)
        print(f"a server after {time.monotonic() - started:.1f} s")
        typed(client[0])
        assert (tmp_path / "captions.jsonl").read_text().count('"status": "succeeded"') == 12
        assert "model   demo" in typed(client[1])
        (batch,) = code_blocks("README.md", "## A batch")
        (tmp_path / "batch.py").write_text(batch.replace("8080", str(port)))
        captions = typed(f"{sys.executable} batch.py").splitlines()
        assert len(captions) == 12
        assert all(len(caption.split()) > 3 for caption in captions)
        up.send_signal(signal.SIGINT)
        assert up.wait(40.0) == 0
    finally:
        up.kill()
        up.wait()
