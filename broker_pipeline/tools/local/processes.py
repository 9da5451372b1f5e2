"""Child processes that cannot outlive their parent.

    parent ── spawn ──► python -I -S -c (prctl PDEATHSIG, check parent, exec) ──exec──► the program, same pid

The few lines of Python in between exist because `preexec_fn` is unsafe once a process has threads. Each child leads
a session of its own, so that a terminal's Ctrl-C reaches only the parent, which then stops its children in order.

The kernel sends PDEATHSIG when the *thread* that spawned the child ends: spawn from the main thread.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import orjson

from broker_pipeline.errors import ServerStartError
from broker_pipeline.exit_codes import INTERRUPTED

# SIGPIPE and SIGXFSZ go back to their defaults: Python ignores them from its start, and exec would pass that on.
_EXEC_BOUND_TO_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error}")
"""

STANDARD_ERROR = Path("/dev/stderr")
"""As the log of a child: this process's own standard error, whatever that is."""

_TAIL_BYTES = 64 * 1024
_NUM_LAST_WORDS = 12
_TELL_S = 10.0


class ChildProcess:
    """One running child: what it says goes to `log_path` (appended), its standard input is empty."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_path: Path, log_start: int) -> None:
        """Wrap a process whose log begins at byte `log_start`; see `spawn`."""
        self.name = name
        self.log_path = log_path
        self._process = process
        self._log_start = log_start
        self._started = time.monotonic()

    @classmethod
    async def spawn(
        cls, name: str, argv: Sequence[str], *, log_path: Path, env: Mapping[str, str] | None = None
    ) -> Self:
        """Start `argv` (an absolute program path and its arguments). `env` is added to this process's environment."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are bound to the thread that spawns them: spawn from the main thread")
        wrapper = [sys.executable, "-I", "-S", "-c", _EXEC_BOUND_TO_PARENT, str(os.getpid())]
        log_fd = _open_log(log_path)
        try:
            log_start = 0 if log_path == STANDARD_ERROR else os.lseek(log_fd, 0, os.SEEK_END)
            process = await asyncio.create_subprocess_exec(
                *wrapper,
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        finally:
            os.close(log_fd)
        return cls(name, process, log_path, log_start)

    @property
    def pid(self) -> int:
        """Process id; the exec keeps it."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, `-signal` when a signal ended it, `None` while it runs."""
        return self._process.returncode

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for its end and return its exit status."""
        return await self._process.wait()

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when the child has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(sig)

    async def stop(self, grace_s: float = 10.0, *, cut_short_s: float = 5.0) -> int:
        """Send SIGTERM; another one after `grace_s`, by which services drain no longer; SIGKILL after `cut_short_s`.

        Without any grace it is SIGKILL at once. Returns the exit status.
        """
        try:
            for wait_s in (grace_s, cut_short_s) if grace_s > 0 else ():
                self.kill(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        return await self.wait()
        except asyncio.CancelledError:
            await self.destroy()
            raise
        return await self.destroy()

    async def destroy(self) -> int:
        """SIGKILL the child and what it may have started; return the exit status."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return await self.wait()

    def last_lines(self, num_lines: int = 20) -> list[str]:
        """Return the last lines that this run wrote to its log."""
        with self.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return list(deque(lines, num_lines))

    def failure(self, what: str) -> ServerStartError:
        """Return the error of a program that `what`, such as "did not start": how it ended, and its last words."""
        if self.returncode is not None:
            what += f": {describe_exit(self.returncode)} after {time.monotonic() - self._started:.1f} s"
        if self.log_path == STANDARD_ERROR:
            return ServerStartError(f"{self.name} {what}; what it said stands before this")
        lines = [readable(line) for line in self.last_lines(_NUM_LAST_WORDS)]
        said = "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"
        return ServerStartError(f"{self.name} {what}. Its last words, from {self.log_path}:\n{said}")


async def run_python(
    name: str, arguments: Sequence[str], *, log_path: Path, tell: Callable[[str], None] = lambda _: None
) -> None:
    """Run this Python with `arguments` to its end; `tell` gets the latest line of its log now and then.

    Raises `ServerStartError` with its last words when it fails.
    """
    child = await ChildProcess.spawn(name, [sys.executable, *arguments], log_path=log_path)
    try:
        while child.is_running:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), _TELL_S)
            if child.is_running:
                tell("".join(child.last_lines(1)))
    finally:
        returncode = await child.destroy()
    if returncode != 0:
        raise child.failure("failed")


def readable(line: str) -> str:
    """Return a JSON log line as `event  key=value …`; other lines as they are."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    if not isinstance(fields, dict) or "event" not in fields:
        return line
    event = fields.pop("event")
    for key in ("timestamp", "service"):
        fields.pop(key, None)
    level = fields.pop("level", "")
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    return f"{level:<7} {event}  {rest}".rstrip()


def describe_exit(returncode: int) -> str:
    """Say how a process ended, in words."""
    if returncode >= 0:
        why = ", its drain cut short by a second signal" if returncode == INTERRUPTED else ""
        return f"exit status {returncode}{why}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def _open_log(path: Path) -> int:
    if path == STANDARD_ERROR:
        return os.dup(2)
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
