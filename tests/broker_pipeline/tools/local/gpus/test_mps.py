"""The control program itself needs a GPU: here stands one that does what the real one does with its directories."""

import asyncio
from pathlib import Path

import pytest

from broker_pipeline.errors import ConfigurationError, ServerStartError
from broker_pipeline.tools.local.gpus.mps import PROGRAM, mps_service

_CONTROL = """#!/bin/sh
[ -d "$CUDA_MPS_PIPE_DIRECTORY" ] && [ -d "$CUDA_MPS_LOG_DIRECTORY" ] || { echo "no directories"; exit 1; }
if [ "$1" = -d ]; then
    [ -e "$CUDA_MPS_PIPE_DIRECTORY/control" ] && { echo "An instance of this daemon is already running"; exit 1; }
    touch "$CUDA_MPS_PIPE_DIRECTORY/control"
    (sleep 30; echo late) &
else
    read -r word
    [ "$word" = quit ] || exit 1
    rm "$CUDA_MPS_PIPE_DIRECTORY/control"
fi
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / PROGRAM
    program.parent.mkdir()
    program.write_text(_CONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def is_there(path: Path) -> bool:
    return path.exists()


@pytest.mark.usefixtures("control")
async def test_it_runs_while_the_context_is_open_in_directories_of_its_own(tmp_path: Path) -> None:
    async with asyncio.timeout(5), mps_service(tmp_path / "mps") as env:  # the daemon's output must not be waited for
        pipes = Path(env["CUDA_MPS_PIPE_DIRECTORY"])
        assert is_there(pipes / "control")
        assert len(str(pipes)) < 100
    assert not is_there(pipes / "control")


@pytest.mark.usefixtures("control")
async def test_a_long_path_is_replaced_by_a_short_one(tmp_path: Path) -> None:
    async with mps_service(tmp_path / ("long" * 30)) as env:
        pipes = Path(env["CUDA_MPS_PIPE_DIRECTORY"])
        assert is_there(pipes / "control")
        assert len(str(pipes)) < 100
    assert not is_there(pipes)


@pytest.mark.usefixtures("control")
async def test_what_it_says_when_it_does_not_start_is_told(tmp_path: Path) -> None:
    async with mps_service(tmp_path / "mps"):
        with pytest.raises(ServerStartError, match="already running"):
            async with mps_service(tmp_path / "mps"):
                pass


async def test_a_machine_without_it_is_a_wrong_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError) as caught:
        async with mps_service(tmp_path / "mps"):
            pass
    assert caught.value.field == "mps"
