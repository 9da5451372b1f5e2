"""Calls of scripts that share round trips: what comes while one is under way goes with the next, all at once.

    call a ──► round trip: a ┄┄┄┄┄► answered
    call b ──────┐
    call c ──────┴──► (waits) ────► round trip: b c ┄┄┄┄► answered

A round trip costs a client some ten times what one more call in it does, and a busy process has many calls to make.
Nothing is repeated but a call to which the server said that it does not know the script.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

Command = tuple[Any, ...]
RoundTrip = Callable[[Sequence[Command]], Awaitable[Sequence[Any]]]
NoteError = Callable[[RedisError], Awaitable[None]]

_MAX_CALLS = 256
"""In one round trip; its answers come only once all of its calls have run."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    script: AsyncScript
    args: tuple[Any, ...]
    """Number of keys, keys, arguments."""
    answer: asyncio.Future[Any]


class ScriptCalls:
    """The calls of one client."""

    def __init__(self, round_trip: RoundTrip, note_error: NoteError) -> None:
        """Have commands run by `round_trip`, and tell `note_error` of each error, before whoever made the call.

        Answers may be the server's errors; what `round_trip` raises is everybody's.
        """
        self._run_all = round_trip
        self._note_error = note_error
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None

    async def run(self, script: AsyncScript, keys: Sequence[str], args: Sequence[bytes]) -> Any:
        """Run a script and return its answer; raises what redis-py raises."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(script, (len(keys), *keys, *args), answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all(), name="redis scripts")
        return await answer

    async def close(self) -> None:
        """Give up what is under way."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        _cancel(self._waiting)

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting[:_MAX_CALLS], self._waiting[_MAX_CALLS:]
                try:
                    await self._round_trip(calls)
                except asyncio.CancelledError:  # nobody is there to send the others
                    _cancel([*calls, *self._waiting])
                    self._waiting = []
                    raise
                except Exception as error:  # noqa: BLE001 - each caller's; all have waited as long for a server
                    if isinstance(error, RedisError):
                        await self._note_error(error)
                    _fail([*calls, *self._waiting], error)
                    self._waiting = []
        finally:
            self._sending = None

    async def _round_trip(self, calls: Sequence[_Call]) -> None:
        if not (unknown := await self._ask(calls)):
            return
        await self._run_all([("SCRIPT", "LOAD", script) for script in {call.script.script for call in unknown}])
        for call in await self._ask([call for call in calls if not call.answer.done()]):
            call.answer.set_exception(NoScriptError("the server forgets scripts as soon as it is taught them"))

    async def _ask(self, calls: Sequence[_Call]) -> list[_Call]:
        """Make calls, answer those that the server has run, and return those whose script it does not know."""
        if not calls:
            return []
        replies = await self._run_all([("EVALSHA", call.script.sha, *call.args) for call in calls])
        unknown = []
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, RedisError):
                await self._note_error(reply)
            if call.answer.done():
                continue  # its caller was cancelled
            if isinstance(reply, NoScriptError):
                unknown.append(call)
            elif isinstance(reply, Exception):
                call.answer.set_exception(reply)
            else:
                call.answer.set_result(reply)
        return unknown


def _fail(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        if not call.answer.done():
            call.answer.set_exception(error)


def _cancel(calls: Sequence[_Call]) -> None:
    for call in calls:
        call.answer.cancel()
