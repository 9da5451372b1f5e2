"""A Redis server and its clients: commands take time, answers get lost, the server goes away and comes back older."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError

from broker_pipeline.state.script_calls import ScriptCalls
from tests.simulation.fake_redis.data import Arg, RedisData
from tests.simulation.processes import Process

_TIMEOUT_S = 1.5
_LEAST_S, _SPREAD_S = 0.0001, 0.0004
"""How long a message is under way, at least, and how much longer at most."""


class FakeRedisServer:
    def __init__(self, loop: asyncio.AbstractEventLoop, chance: random.Random) -> None:
        self.data = RedisData(loop.time)
        self.is_up = True
        self.lost_answers = 0.0
        """Share of commands that are done and not answered."""
        self.slowness = 1.0
        self.loses_second = True
        """Whether it writes to its disk every second, not always."""
        self.loop = loop
        self._held: list[Callable[[], None]] | None = None
        self._disk = self.data.snapshot()
        self._chance = chance
        self._context = contextvars.Context()

    def call_later(self, delay_s: float, call: Callable[..., object], *args: object) -> None:
        """Have something happen at the server."""
        self.loop.call_at(self.loop.time() + delay_s, call, *args, context=self._context)

    def sync(self) -> None:
        """Write to the disk what there is; a real one does so every second, here only when it will matter."""
        self._disk = self.data.snapshot()

    def lose_unsynced(self) -> None:
        """Have what was on the disk, and nothing else."""
        if self.loses_second:
            self.data.restore(self._disk)

    def stop(self) -> None:
        """Do nothing any more, and have it wait."""
        self._held = []

    def go_on(self) -> None:
        held, self._held = self._held or [], None
        for arrive in held:
            arrive()

    def holds(self, arrive: Callable[[], None]) -> bool:
        """Whether it is stopped, and does this when it goes on."""
        if self._held is not None:
            self._held.append(arrive)
        return self._held is not None

    def delay_s(self) -> float:
        return self.slowness * (_LEAST_S + _SPREAD_S * self._chance.random())

    def loses_answer(self) -> bool:
        return self.lost_answers > 0 and self._chance.random() < self.lost_answers


class FakeRedisClient:
    """What the state layer uses of `RedisClient`, with its own `ScriptCalls`."""

    def __init__(self, server: FakeRedisServer, process: Process) -> None:
        self._server = server
        self._process = process
        self.is_cut = False
        """Whether nothing gets through, and nobody says so."""
        self._late: list[Callable[[], None]] = []
        self.scripts = ScriptCalls(self._round_trip, self.note_error)

    async def note_error(self, error: object) -> None: ...

    async def _round_trip(self, commands: Sequence[tuple[Arg, ...]]) -> list[Any]:
        if self._process.is_dead:  # what its tasks still try while they are cancelled
            raise RedisConnectionError("the process is dead")
        answer: asyncio.Future[list[Any]] = self._server.loop.create_future()
        delay_s = self._server.delay_s()
        if delay_s > _TIMEOUT_S:
            self._expire(answer)
        self._server.call_later(delay_s, self._arrive, commands, answer)
        return await answer

    def _arrive(self, commands: Sequence[tuple[Arg, ...]], answer: asyncio.Future[list[Any]]) -> None:
        """Be at the server: what has been sent is done, whatever has become of who sent it."""
        server = self._server
        if self.is_cut:
            self._late.append(lambda: self._arrive(commands, answer))
            self._expire(answer)
        elif server.holds(lambda: self._arrive(commands, answer)):
            self._expire(answer)
        elif not server.is_up:
            self._tell(answer, RedisConnectionError("connection refused"))
        else:
            answers = [self._run(*command) for command in commands]
            lost = RedisConnectionError("connection reset") if server.loses_answer() else None
            self._tell(answer, lost or answers)

    def _tell(self, answer: asyncio.Future[list[Any]], said: list[Any] | Exception) -> None:
        server = self._server
        self._process.call_at(server.loop.time() + server.delay_s(), self._take, answer, said)

    def _take(self, answer: asyncio.Future[list[Any]], said: list[Any] | Exception) -> None:
        if self.is_cut:
            self._late.append(lambda: self._take(answer, said))
            self._expire(answer)
        elif not answer.done():
            _ = answer.set_exception(said) if isinstance(said, Exception) else answer.set_result(said)

    def _expire(self, answer: asyncio.Future[list[Any]]) -> None:
        def time_out() -> None:
            if not answer.done():
                answer.set_exception(RedisTimeoutError("timed out"))

        self._process.call_at(self._server.loop.time() + _TIMEOUT_S, time_out)

    def cut(self) -> None:
        self.is_cut = True

    def heal(self) -> None:
        """Let through what TCP repeats, also what nobody waits for any more."""
        self.is_cut = False
        late, self._late = self._late, []
        for arrive in late:
            arrive()

    def _run(self, command: Arg, *args: Arg) -> Any:
        if command == "EVALSHA":
            sha, num_keys, *rest = args
            return self._server.data.run(_SOURCES[str(sha)], int(num_keys), *rest)
        if command == "EXEC":
            answers = self._server.data.transact(*args)
            return WatchError("watched variable changed") if answers is None else answers
        return self._server.data.call(command, *args)

    async def _one(self, *command: Arg) -> Any:
        (answer,) = await self._round_trip([command])
        return answer

    def register_script(self, source: str) -> SimpleNamespace:
        return _script(source)

    def pipeline(self, *, transaction: bool) -> _Pipeline:  # noqa: ARG002 - all are
        return _Pipeline(self)

    async def get(self, key: str) -> Any:
        return await self._one("GET", key)

    async def mget(self, keys: list[str]) -> Any:
        return await self._round_trip([("GET", key) for key in keys])

    async def set(self, key: str, value: bytes, ex: int) -> Any:
        return await self._one("SET", key, value, "EX", ex)

    async def delete(self, key: str) -> Any:
        return await self._one("DEL", key)

    async def hgetall(self, key: str) -> Any:
        found = await self._one("HGETALL", key)
        return dict(zip(found[::2], found[1::2], strict=True))

    async def hmget(self, key: str, fields: tuple[str, ...]) -> Any:
        return await self._one("HMGET", key, *fields)

    async def zrange(self, key: str, start: int, stop: int) -> Any:
        return await self._one("ZRANGE", key, start, stop)


class _Pipeline:
    def __init__(self, client: FakeRedisClient) -> None:
        self._client = client
        self._commands: list[tuple[Arg, ...]] = []
        self._watched: tuple[str, Any] | None = None

    async def __aenter__(self) -> _Pipeline:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def watch(self, key: str) -> None:
        self._watched = key, await self._client.get(key)

    async def get(self, key: str) -> Any:
        return await self._client.get(key)

    async def pttl(self, key: str) -> Any:
        return await self._client._one("PTTL", key)

    def multi(self) -> None: ...

    def set(self, key: str, value: bytes, px: int) -> None:
        self._commands.append(("SET", key, value, "PX", px))

    def sadd(self, key: str, member: str) -> None:
        self._commands.append(("SADD", key, member))

    def delete(self, key: str) -> None:
        self._commands.append(("DEL", key))

    def execute_command(self, *command: Arg) -> None:
        self._commands.append(command)

    def hmget(self, key: str, fields: tuple[str, ...]) -> None:
        self._commands.append(("HMGET", key, *fields))

    def lrange(self, key: str, start: int, stop: int) -> None:
        self._commands.append(("LRANGE", key, start, stop))

    async def execute(self, *, raise_on_error: bool = True) -> list[Any]:  # noqa: ARG002 - errors end all
        if self._watched is None:
            return await self._client._round_trip(self._commands)
        answer = await self._client._one("EXEC", *self._watched, self._commands)
        if isinstance(answer, WatchError):
            raise answer
        return answer


_SOURCES: dict[str, str] = {}


@lru_cache
def _script(source: str) -> SimpleNamespace:
    sha = hashlib.sha1(source.encode()).hexdigest()
    _SOURCES[sha] = source
    return SimpleNamespace(sha=sha, script=source)
