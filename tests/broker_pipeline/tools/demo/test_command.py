"""The README's first command, run as a person runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker_pipeline.tools.demo.pictures import photographs, scenes
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.slow

DEMO = (sys.executable, "-m", "broker_pipeline", "demo")


def environment(tmp_path: Path) -> dict[str, str]:
    """Keep temporary directories where the test sees them."""
    return {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "200"}


def test_the_demo_captions_pictures_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(DEMO, env=environment(tmp_path), capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = [*scenes(), *photographs()]
    for name in (picture.name for picture in pictures):
        assert name in done.stdout
    assert f"{len(pictures)} of {len(pictures)} captioned" in done.stdout
    took_part = done.stdout[done.stdout.index("workers that took part") :]
    for worker in ("stage-0", "stage-1", "stage-2", "vision-0"):
        assert worker in took_part
    assert "layers 0:1" in took_part
    assert f"{len(scenes())} of {len(scenes())} captions are the expected ones" in took_part
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    with (tmp_path.parent / "demo.out").open("wb") as output:
        demo = subprocess.Popen(DEMO, env=environment(tmp_path), stdout=output, stderr=subprocess.STDOUT)
    wait_until(lambda: b"stage-2 starting" in (tmp_path.parent / "demo.out").read_bytes(), timeout_s=60)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(40) == 130
    assert list(tmp_path.iterdir()) == []
