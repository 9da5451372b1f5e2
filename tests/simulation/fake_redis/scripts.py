"""Runs the project's real Lua scripts, unchanged, in the Lua that Redis has (5.1), on `RedisData`."""

from __future__ import annotations

from functools import cache
from typing import Any

import lupa.lua51
import orjson

from tests.simulation.fake_redis.data import RedisData


class _Machine:
    """One Lua for all simulations of this process: scripts keep nothing between calls."""

    def __init__(self) -> None:
        self.data: RedisData | None = None
        self._lua = lupa.lua51.LuaRuntime(encoding=None)
        self._table = self._lua.table_from
        names = self._lua.globals()
        names[b"redis"] = self._table({b"call": self._call, b"pcall": self._call})  # nothing is of a wrong type here
        names[b"cjson"] = self._table({b"decode": lambda text: self._to_lua(_encoded(orjson.loads(text)))})
        self._functions: dict[str, Any] = {}

    def run(self, data: RedisData, source: str, keys: list[bytes], args: list[bytes]) -> Any:
        function = self._functions.get(source)
        if function is None:
            wrapped = f"function(KEYS, ARGV)\n{source}\nend"
            function = self._functions[source] = self._lua.eval(wrapped.encode())
        self.data = data
        return _from_lua(function(self._table(keys), self._table(args)))

    def _call(self, command: bytes, *args: Any) -> Any:
        assert self.data is not None
        return self._to_lua(self.data.call(command, *args))

    def _to_lua(self, value: Any) -> Any:
        if value is None:
            return False
        if isinstance(value, list):
            return self._table([self._to_lua(item) for item in value])
        if isinstance(value, dict):
            return self._table({key: self._to_lua(item) for key, item in value.items()})
        return value


def _encoded(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if isinstance(value, dict):
        return {key.encode(): _encoded(item) for key, item in value.items()}
    return value


def _from_lua(value: Any) -> Any:
    """As Redis does: numbers are cut to integers, false is nothing, a table ends at its first nil."""
    if lupa.lua51.lua_type(value) == "table":
        items = []
        while (item := value[len(items) + 1]) is not None:
            items.append(_from_lua(item))
        return items
    if value is False or value is None:
        return None
    return value if isinstance(value, bytes) else int(value)


@cache
def _machine() -> _Machine:
    return _Machine()


def run_script(data: RedisData, source: str, keys: list[bytes], args: list[bytes]) -> Any:
    """Run one script and return its answer as redis-py would."""
    return _machine().run(data, source, keys, args)
