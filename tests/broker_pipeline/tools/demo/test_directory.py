"""What demos leave behind, with demos that are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from broker_pipeline.tools.demo.directory import demo_directory

DEMO = """
import sys
from broker_pipeline.tools.demo.directory import demo_directory
with demo_directory() as directory:
    (directory / "run").mkdir()
    print(directory, flush=True)
    sys.stdin.read()
"""


def started_demo(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    demo = subprocess.Popen(
        [sys.executable, "-c", DEMO],
        env={"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    return demo, Path(demo.stdout.readline().strip())


def test_the_next_demo_removes_what_a_killed_one_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broker-pipeline-demo-unlocked").mkdir()
    (tmp_path / "broker-pipeline-demo-file").touch()
    living, its = started_demo(tmp_path)
    dead, left = started_demo(tmp_path)
    dead.kill()
    dead.communicate()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert left.exists()
    with demo_directory() as own:
        assert own.parent == tmp_path
        assert not left.exists()
        assert (its / "run").exists()
    assert living.communicate("")[0] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broker-pipeline-demo-file",
        "broker-pipeline-demo-unlocked",
    ]
