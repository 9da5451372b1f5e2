"""What a Redis holds, on a virtual clock; real scripts run on it unchanged, in the Lua that Redis has (5.1).

`test_redis.py` holds it against a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lupa.lua51

Arg = bytes | str | int | float

WALL_S = 1_700_000_000
"""Time of day when a simulation begins."""
_MAX_DECODED = 256


def as_bytes(value: Arg) -> bytes:
    if type(value) is bytes:
        return value
    return value.encode() if isinstance(value, str) else b"%d" % value if value == int(value) else repr(value).encode()


class RedisData:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._machine = _machine()
        self._store = self._machine.store()

    def snapshot(self) -> Any:
        """Return everything as it is on disk now."""
        return self._machine.copied(self._store)

    def restore(self, snapshot: Any) -> None:
        self._store = self._machine.copied(snapshot)

    def kinds(self) -> dict[bytes, bytes]:
        """Return all keys, and the type of each."""
        return dict(_answer(self._machine.kinds(self._store)))

    def call(self, command: Arg, *args: Arg) -> Any:
        """Run one command; bytes, int, None and lists of them come back, as redis-py has them without decoding."""
        encoded = [arg if type(arg) is bytes else as_bytes(arg) for arg in args]
        return _answer(self._machine.call(self._store, self._clock(), as_bytes(command), *encoded))

    def transact(self, watched: Arg, seen: bytes | None, commands: list[tuple[Arg, ...]]) -> Any:
        """Run commands together and return their answers; None where the key holds something else than was seen."""
        encoded: list[int | bytes] = []
        for command in commands:
            encoded += (len(command) - 1, *map(as_bytes, command))
        found = seen is not None and seen
        return _answer(self._machine.transact(self._store, self._clock(), as_bytes(watched), found, *encoded))

    def run(self, source: str, num_keys: int, *args: Arg) -> Any:
        """Run a script with so many keys and, after them, arguments; return its answer as redis-py would."""
        encoded = [arg if type(arg) is bytes else as_bytes(arg) for arg in args]
        return _answer(self._machine.run(self._store, self._clock(), self._machine.script(source), num_keys, *encoded))


class _Machine:
    """One Lua for all simulations of this process: scripts keep nothing between calls."""

    def __init__(self) -> None:
        self._lua = lupa.lua51.LuaRuntime(encoding=None)
        self._scripts: dict[str, Any] = {}
        commands = self._load("commands.lua")(WALL_S)
        decode = self._load("json.lua")(self._lua.eval(b"newproxy()"))
        machine = self._load("machine.lua")(commands, decode, _MAX_DECODED)
        self.store, self.copied, self.kinds = machine[b"store"], machine[b"copied"], machine[b"kinds"]
        self.call, self.run, self.transact = machine[b"call"], machine[b"run"], machine[b"transact"]

    def script(self, source: str) -> Any:
        """Return a script as a function of its keys and arguments."""
        if (script := self._scripts.get(source)) is None:
            script = self._scripts[source] = self._lua.eval(f"function(KEYS, ARGV)\n{source}\nend".encode())
        return script

    def _load(self, name: str) -> Any:
        return self._lua.eval(b"function(...)\n" + Path(__file__).with_name(name).read_bytes() + b"\nend")


def _answer(said: Any) -> Any:
    """Return what Lua has laid flat."""
    if type(said) is tuple:
        return _next(iter(said))
    return None if said is False else said


def _next(items: Iterator[Any]) -> Any:
    item = next(items)
    if item is True:
        return [_next(items) for _ in range(next(items))]
    return None if item is False else item


@cache
def _machine() -> _Machine:
    return _Machine()
