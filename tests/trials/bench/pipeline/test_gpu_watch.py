from pathlib import Path

import pytest

from tests.kit.waiting import eventually
from trials.bench.pipeline.gpu_watch import GpuWatch, parse_sample

# Idle until somebody asks for work, as the real one would say it of a GPU.
_DRIVER = """#!/bin/sh
while :; do [ -e "{work}" ] && echo "80, 600.5, 1000" || echo "0, 70.5, 1000"; sleep 0.01; done
"""


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("97, 612.31, 65321\n", (97.0, 612.31, 65321.0)),
        ("97, [N/A], 65321\n", None),
        ("NVIDIA-SMI has failed", None),
        ("", None),
    ],
)
def test_a_line_of_the_driver_is_read_or_left_out(line: str, sample: tuple[float, float, float] | None) -> None:
    assert parse_sample(line) == sample


async def test_what_was_before_a_round_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, log, work = tmp_path / "bin" / "nvidia-smi", tmp_path / "log", tmp_path / "work"
    program.parent.mkdir()
    program.write_text(_DRIVER.format(work=work))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    async with GpuWatch.open(log) as watch:
        await eventually(lambda: watch.end() is not None)
        work.touch()
        await eventually(lambda: "80" in log.read_text())
        watch.begin()
        await eventually(lambda: watch.end() is not None)
        load = watch.end()
    assert load is not None
    assert (load.utilisation, load.watts, load.memory_mb) == (0.8, 600.5, 1000)


async def test_without_a_driver_there_is_nothing_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with GpuWatch.open(tmp_path / "log") as watch:
        watch.begin()
        assert watch.end() is None
