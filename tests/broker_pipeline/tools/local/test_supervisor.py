"""The supervisor with real child processes: small scripts that behave as they are told by files."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from broker_pipeline.errors import ServerStartError
from broker_pipeline.exit_codes import USAGE
from broker_pipeline.tools.local import supervisor as supervisor_module
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.supervisor import State, SupervisedProgram, Trouble
from tests.kit.waiting import eventually

SCRIPT = """
import pathlib, sys, time
directory = pathlib.Path(sys.argv[1])
broken = directory / "broken"
if broken.exists():
    sys.exit(int(broken.read_text()))
(directory / "ready").touch()
while not (directory / "drained").exists():
    time.sleep(0.01)
"""


class Script:
    """A program that is ready at once, or exits with the status written in the file `broken`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_path = directory / "log"
        self.in_trouble: Trouble | None = None
        self._process: ChildProcess | None = None

    @property
    def process(self) -> ChildProcess:
        assert self._process is not None
        return self._process

    async def start(self) -> str:
        (self.directory / "ready").unlink(missing_ok=True)
        argv = [sys.executable, "-I", "-S", "-c", SCRIPT, str(self.directory)]
        self._process = await ChildProcess.spawn("script", argv, log_path=self.log_path)
        while not (self.directory / "ready").exists():
            if not self._process.is_running:
                raise ServerStartError("script did not start")
            await asyncio.sleep(0.01)
        return "fine"

    async def stop(self, grace_s: float) -> None:
        if self._process is not None:
            await self._process.stop(grace_s)

    async def trouble(self) -> Trouble | None:
        return self.in_trouble

    def break_with(self, status: int) -> None:
        (self.directory / "broken").write_text(str(status))

    def mend(self) -> None:
        (self.directory / "broken").unlink()


class Watched:
    """A supervised script, its history, and the task that watches it."""

    def __init__(self, directory: Path, *, restarts: bool) -> None:
        self.script = Script(directory)
        self.history: list[State] = []
        self.program = SupervisedProgram(
            "script",
            self.script,
            restarts=restarts,
            may_end=True,
            on_change=lambda program: self.history.append(program.state),
        )
        self.watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.program.start()
        self.watching = asyncio.create_task(self.program.watch())

    async def until(self, state: State) -> None:
        await eventually(lambda: self.program.state == state)

    async def restarts_again(self) -> None:
        """Return when it has died and come back: by then any other that would have come back as well."""
        self.program.kill()
        await self.until("restarting")
        await self.program.wait_ready()

    async def stop(self) -> None:
        if self.watching is not None:
            self.watching.cancel()
            await asyncio.wait({self.watching})
        await self.program.stop(5)


@pytest_asyncio.fixture
async def watched(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Watched]:
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE_S", 0.05)
    watched = Watched(tmp_path, restarts=getattr(request, "param", True))
    yield watched
    await watched.stop()
    assert not watched.script.process.is_running


@pytest_asyncio.fixture
async def clock(watched: Watched, tmp_path: Path) -> AsyncIterator[Watched]:  # behind `watched`, which sets the pause
    (tmp_path / "clock").mkdir()
    clock = Watched(tmp_path / "clock", restarts=True)
    yield clock
    await clock.stop()


async def test_a_killed_program_is_started_again(watched: Watched) -> None:
    await watched.start()
    first = watched.program.pid
    watched.program.kill()
    await watched.until("restarting")
    assert "SIGKILL" in watched.program.detail
    await watched.program.wait_ready(5)
    assert watched.program.pid not in {None, first}
    assert watched.program.num_restarts == 1
    assert watched.history == ["starting", "ready", "restarting", "starting", "ready"]


async def test_a_program_that_cannot_start_now_is_tried_with_growing_pauses(watched: Watched) -> None:
    await watched.start()
    watched.script.break_with(69)
    watched.program.kill()
    await eventually(lambda: watched.history.count("starting") >= 4)
    assert "next try in" in watched.program.detail or watched.program.state == "starting"
    watched.script.mend()
    await watched.program.wait_ready(5)
    assert watched.program.num_restarts == 1


async def test_what_ended_in_trouble_is_started_again_once_that_is_over(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "TEND_S", 0.01)
    await watched.start()
    watched.script.in_trouble = Trouble("no room", is_over=False)
    watched.program.kill()
    await eventually(lambda: watched.program.detail == "no room")
    assert watched.program.state == "restarting"
    assert not watched.program.process.is_running
    watched.script.in_trouble = Trouble("no room", is_over=True)
    await watched.program.wait_ready()


async def test_a_wrong_setting_ends_the_watch(watched: Watched) -> None:
    await watched.start()
    watched.script.break_with(USAGE)
    watched.program.kill()
    assert watched.watching is not None
    with pytest.raises(ServerStartError):
        async with asyncio.timeout(60):
            await watched.watching
    assert watched.program.state == "failed"
    with pytest.raises(ServerStartError, match="is failed, not ready"):
        await watched.program.wait_ready(5)


@pytest.mark.parametrize("watched", [False], indirect=True)
async def test_without_restarts_the_dead_stay_dead_until_told(watched: Watched, clock: Watched) -> None:
    await watched.start()
    await clock.start()
    for count in (1, 2):
        watched.program.kill(signal.SIGTERM)
        await watched.until("dead")
        await clock.restarts_again()
        assert watched.program.state == "dead"
        await watched.program.restart()
        assert watched.program.state == "ready"
        assert watched.program.num_restarts == count


async def test_a_program_that_ended_in_order_stays_ended_until_told(watched: Watched, clock: Watched) -> None:
    """It was drained; starting it again at once would undo what somebody asked for."""
    await watched.start()
    await clock.start()
    drained = watched.script.directory / "drained"
    drained.touch()
    await watched.until("stopped")
    await clock.restarts_again()
    assert watched.history == ["starting", "ready", "stopped"]
    assert "drained" in watched.program.detail
    drained.unlink()
    await watched.program.restart()
    watched.program.kill()
    await watched.until("restarting")
    await watched.program.wait_ready(5)


async def test_restart_replaces_a_running_program(watched: Watched) -> None:
    await watched.start()
    first = watched.program.pid
    await watched.program.restart()
    assert first is not None
    assert not psutil.pid_exists(first)
    assert watched.program.pid != first
    watched.program.kill()
    await watched.until("restarting")
    await watched.program.wait_ready(5)


async def test_a_first_start_that_fails_is_not_tried_again(watched: Watched) -> None:
    watched.script.break_with(1)
    with pytest.raises(ServerStartError):
        await watched.start()
    assert watched.history == ["starting", "failed"]


async def test_stop_ends_in_order_and_says_how(watched: Watched) -> None:
    await watched.start()
    await watched.stop()
    assert watched.history[-2:] == ["stopping", "stopped"]
    assert watched.program.detail == "killed by SIGTERM"
    assert watched.program.pid is None
