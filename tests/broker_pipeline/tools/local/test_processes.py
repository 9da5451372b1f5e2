import asyncio
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local import processes
from broker_pipeline.tools.local.processes import ChildProcess, describe_exit, run_python
from tests.kit.waiting import eventually

IGNORES_TERM = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(1000)"


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def spawn(tmp_path: Path, code: str, *arguments: str, **options: dict[str, str]) -> ChildProcess:
    argv = [sys.executable, "-I", "-S", "-c", code, *arguments]
    return await ChildProcess.spawn("child", argv, log_path=tmp_path / "log", **options)


async def said(child: ChildProcess, text: str) -> None:
    await eventually(lambda: text in "\n".join(child.last_lines()))


async def test_log_holds_both_streams_and_tail_only_this_runs_lines(tmp_path: Path) -> None:
    for word in ("first", "second"):
        child = await spawn(
            tmp_path, f"import sys; print('{word}', flush=True); print('{word} error', file=sys.stderr)"
        )
        assert await child.wait() == 0
        assert child.last_lines() == [word, f"{word} error"]
    assert (tmp_path / "log").read_text().split() == ["first", "first", "error", "second", "second", "error"]


async def test_environment_is_added_and_standard_input_is_empty(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['EXTRA'], 'HOME' in os.environ, repr(sys.stdin.read()))"
    child = await spawn(tmp_path, code, env={"EXTRA": "yes"})
    await child.wait()
    assert child.last_lines() == ["yes True ''"]


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    child = await spawn(tmp_path, IGNORES_TERM)
    await said(child, "up")
    assert await child.stop(grace_s=0.1, cut_short_s=0.1) == -signal.SIGKILL


async def test_a_cancelled_stop_kills(tmp_path: Path) -> None:
    child = await spawn(tmp_path, IGNORES_TERM)
    await said(child, "up")
    stopping = asyncio.ensure_future(child.stop(grace_s=60))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert child.returncode == -signal.SIGKILL


async def test_signals_after_the_end_do_nothing(tmp_path: Path) -> None:
    child = await spawn(tmp_path, "raise SystemExit(3)")
    assert await child.wait() == 3
    child.kill()
    assert await child.stop() == 3
    assert await child.destroy() == 3


async def test_destroy_reaches_what_the_child_started(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(1000)"
    grandchild = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    child = await spawn(tmp_path, code, grandchild)
    await eventually(lambda: bool(child.last_lines()))
    pid = int(child.last_lines()[0])
    await child.destroy()
    await eventually(lambda: not is_alive(pid))


async def test_a_missing_program_says_so_in_the_log(tmp_path: Path) -> None:
    child = await ChildProcess.spawn("child", [str(tmp_path / "nothing")], log_path=tmp_path / "log")
    assert await child.wait() != 0
    assert "cannot run" in child.last_lines()[-1]


async def test_default_signal_dispositions_are_restored(tmp_path: Path) -> None:
    child = await ChildProcess.spawn(
        "child", ["/bin/sh", "-c", "grep SigIgn /proc/self/status"], log_path=tmp_path / "log"
    )
    await child.wait()
    ignored = int(child.last_lines()[0].split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))


async def test_spawning_from_another_thread_is_refused(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(spawn(tmp_path, "pass"))
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "main thread" in str(errors[0])


async def test_python_runs_to_its_end_and_tells_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_TELL_S", 0.01)
    told: list[str] = []
    code = "import os, sys; print('half', flush=True)\nwhile not os.path.exists(sys.argv[1]): pass"
    arguments = ["-c", code, str(tmp_path / "end")]
    running = asyncio.ensure_future(run_python("program", arguments, log_path=tmp_path / "log", tell=told.append))
    await eventually(lambda: "half" in told)
    (tmp_path / "end").touch()
    await running


async def test_python_that_fails_ends_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=r"program failed: exit status 1 after \d+\.\d s(.|\n)*out of paper"):
        await run_python("program", ["-c", "import sys; sys.exit('out of paper')"], log_path=tmp_path / "log")


def test_exits_are_described_in_words() -> None:
    assert describe_exit(3) == "exit status 3"
    assert describe_exit(130) == "exit status 130, its drain cut short by a second signal"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-200) == "killed by signal 200"
