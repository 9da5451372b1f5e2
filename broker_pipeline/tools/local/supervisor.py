"""Keeps one program running: starts it, sees it die, starts it again after a pause that grows, stops it in order.

waiting ──start()──► starting ──► ready ──died──► restarting ──► starting ──► …
                        │                             │
                        └── did not start ──► failed ◄┘  (a setting is wrong: trying again is no use)

any ──stop()──► stopping ──► stopped ◄── ended with 0 by itself (a worker that was drained); `restart()` brings it back
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from broker_pipeline.errors import ServerStartError
from broker_pipeline.exit_codes import CONFIGURATION, OK, USAGE, raising_first_error
from broker_pipeline.tools.local.processes import ChildProcess, describe_exit

State = Literal["waiting", "starting", "ready", "restarting", "failed", "stopping", "stopped", "dead"]

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
TEND_S = 2.0
_STEADY_S = 60.0
"""A program that was ready for so long has its pauses start small again."""


async def start_together(programs: Iterable[SupervisedProgram]) -> None:
    """Start all at once; raises the first `ServerStartError` and gives the other starts up."""
    with raising_first_error():
        async with asyncio.TaskGroup() as tasks:
            for program in programs:
                tasks.create_task(program.start())


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a program that runs has to be started again, and whether that would be of use by now."""

    reason: str
    is_over: bool


class Program(Protocol):
    """Something that can be started and stopped again and again: an embedded server, or a service of ours."""

    @property
    def log_path(self) -> Path:
        """Where it writes."""

    @property
    def process(self) -> ChildProcess:
        """The latest process."""

    async def start(self) -> str:
        """Start, wait until ready, and say in a few words what is ready. Raises `ServerStartError`."""

    async def stop(self, grace_s: float) -> None:
        """End it in order, by force after `grace_s`."""

    async def trouble(self) -> Trouble | None:
        """Say why it has to be started again although it runs, or why it ended; None while all is well."""


class SupervisedProgram:
    """One program, its state for those who watch, and the means to disturb it for those who test."""

    def __init__(
        self,
        name: str,
        program: Program,
        *,
        what: str = "",
        restarts: bool = True,
        may_end: bool = False,
        on_change: Callable[[SupervisedProgram], None] = lambda _: None,
    ) -> None:
        """Prepare a program; `what` says what it is for. Without `restarts` one that died stays dead until `restart()`.

        With `may_end`, one that ended with 0 was drained, or asked by SIGTERM, and stays so until `restart()` as well.
        """
        self.name = name
        self.what = what
        self.state: State = "waiting"
        self.detail = ""
        self.num_restarts = 0
        self._program = program
        self._restarts = restarts
        self._may_end = may_end
        self._on_change = on_change
        self._num_deaths_in_a_row = 0
        self._lock = asyncio.Lock()
        self._is_ready = asyncio.Event()

    @property
    def log_path(self) -> Path:
        """Where the program writes."""
        return self._program.log_path

    @property
    def process(self) -> ChildProcess:
        """The latest process."""
        return self._program.process

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self.process.pid if self.state in {"ready", "stopping"} else None

    async def start(self) -> None:
        """Start the program and wait until it is ready; raises `ServerStartError`."""
        async with self._lock:
            await self._start_or_fail()

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until it is ready (again); raises `ServerStartError` when it has failed, or is not in time."""
        deadline = time.monotonic() + timeout_s
        while self.state != "ready" or not self.process.is_running:
            if self.state == "failed" or time.monotonic() > deadline:
                raise ServerStartError(f"{self.name} is {self.state}, not ready: {self.detail}")
            await asyncio.sleep(0.02)

    async def watch(self) -> None:
        """See that it keeps running, until cancelled. Raises `ServerStartError` when it can never run again."""
        while True:
            process = self.process
            began = time.monotonic()
            returncode = await process.wait()
            async with self._lock:
                if self.process is not process:
                    continue
                self._note_death(returncode, lived_s=time.monotonic() - began)
            if self.state == "restarting":
                await self._revive()
            else:
                await self._is_ready.wait()

    async def tend(self) -> None:
        """Say that it runs and is in trouble, and end it once that is of use, for `watch` to start it again."""
        said = ""
        while True:
            await asyncio.sleep(TEND_S)
            trouble = await self._program.trouble() if self.state == "ready" and self._restarts else None
            if trouble is None:
                said = ""
            elif trouble.reason != said:
                self._set("ready", said := trouble.reason)
            elif trouble.is_over:
                await self._program.stop(10.0)

    async def restart(self) -> None:
        """Stop it if it runs, start it again and wait until it is ready."""
        async with self._lock:
            await self._program.stop(10.0)
            await self._start_or_fail()
            self.num_restarts += 1

    async def stop(self, grace_s: float) -> None:
        """End it in order. Call after the end of `watch`."""
        if self.state in {"waiting", "stopped"}:
            return
        if self.state != "failed":
            self._set("stopping")
        await self._program.stop(grace_s)
        if self.state != "failed":
            self._set("stopped", describe_exit(self.process.returncode or 0))

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send the process a signal, as a fault would."""
        self.process.kill(sig)

    async def _start_or_fail(self) -> None:
        try:
            await self._start()
        except ServerStartError as error:
            self._set("failed", error.message)
            raise
        except asyncio.CancelledError:
            self._set("stopped", "given up")
            raise

    async def _start(self) -> None:
        self._set("starting")
        self._set("ready", await self._program.start())

    async def _revive(self) -> None:
        """Start again until it is ready; raises `ServerStartError` when a setting is wrong."""
        while True:
            await asyncio.sleep(self._pause_s())
            await self._wait_out_trouble()
            async with self._lock:
                if self.process.is_running:
                    return
                try:
                    await self._start()
                except ServerStartError as error:
                    if self.process.returncode in {USAGE, CONFIGURATION}:
                        self._set("failed", error.message)
                        raise
                    self._num_deaths_in_a_row += 1
                    self._set("restarting", f"{error.message} (next try in {self._pause_s():g} s)")
                else:
                    self.num_restarts += 1
                    return

    async def _wait_out_trouble(self) -> None:
        """Wait until a start is of use: what ended for want of room would end again, after ever longer pauses."""
        while (trouble := await self._program.trouble()) is not None and not trouble.is_over:
            self._set("restarting", trouble.reason)
            await asyncio.sleep(TEND_S)

    def _note_death(self, returncode: int, *, lived_s: float) -> None:
        self._num_deaths_in_a_row = 1 if lived_s > _STEADY_S else self._num_deaths_in_a_row + 1
        if self._may_end and returncode == OK:
            self._set("stopped", "drained, exit status 0; it is not started again")
        elif self._restarts:
            self._set("restarting", f"{describe_exit(returncode)}; starting again in {self._pause_s():g} s")
        else:
            self._set("dead", describe_exit(returncode))

    def _pause_s(self) -> float:
        return float(min(FIRST_PAUSE_S * 2.0 ** max(self._num_deaths_in_a_row - 1, 0), LONGEST_PAUSE_S))

    def _set(self, state: State, detail: str = "") -> None:
        self.state = state
        self.detail = detail
        if state == "ready":
            self._is_ready.set()
        else:
            self._is_ready.clear()
        self._on_change(self)
