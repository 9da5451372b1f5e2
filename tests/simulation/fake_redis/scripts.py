"""Runs the project's real Lua scripts, unchanged, in the Lua that Redis has (5.1), on `RedisData`."""

from __future__ import annotations

from functools import cache
from typing import Any

import lupa.lua51
import orjson

from tests.simulation.fake_redis.data import RedisData, as_bytes

_MAX_DECODED = 256
_ANSWERS = b"""function(list)
  local function answer(value)
    local kind = type(value)
    if kind == 'number' then return value < 0 and math.ceil(value) or math.floor(value) end
    if kind ~= 'table' then return value or nil end
    local items, num = {}, 0
    while value[num + 1] ~= nil do
      num = num + 1
      items[num] = answer(value[num])
    end
    return list(unpack(items, 1, num))
  end
  return answer
end"""
"""As Redis does: numbers are cut to integers, false is nothing, a table ends at its first nil."""


class _Machine:
    """One Lua for all simulations of this process: scripts keep nothing between calls."""

    def __init__(self) -> None:
        self.data: RedisData | None = None
        self._lua = lupa.lua51.LuaRuntime(encoding=None)
        self._table = self._lua.table_from
        names = self._lua.globals()
        names[b"redis"] = self._table({b"call": self._call, b"pcall": self._call})  # nothing is of a wrong type here
        names[b"cjson"] = self._table({b"decode": self._decode})
        self._answer = self._lua.eval(_ANSWERS)(_list)
        self._functions: dict[str, Any] = {}
        self._decoded: dict[bytes, Any] = {}

    def run(self, data: RedisData, source: str, keys: list[bytes], args: list[bytes]) -> Any:
        function = self._functions.get(source)
        if function is None:
            wrapped = f"function(KEYS, ARGV)\n{source}\nend"
            function = self._functions[source] = self._lua.eval(wrapped.encode())
        self.data = data
        return self._answer(function(self._table(keys), self._table(args)))

    def _call(self, command: bytes, *args: Any) -> Any:
        assert self.data is not None
        return self._to_lua(self.data.call(command, *args))

    def _decode(self, text: bytes) -> Any:
        """Decode once what comes again and again, such as records of workers; no script changes what it decoded."""
        if (known := self._decoded.get(text)) is None:
            if len(self._decoded) > _MAX_DECODED:
                self._decoded.clear()
            known = self._decoded[text] = self._to_lua(orjson.loads(text))
        return known

    def _to_lua(self, value: Any) -> Any:
        kind = type(value)
        if kind is bytes:
            return value
        if kind is str:
            return value.encode()
        if kind is list:
            return self._table([self._to_lua(item) for item in value])
        if kind is dict:
            return self._table({as_bytes(key): self._to_lua(item) for key, item in value.items()})
        return False if value is None else value


def _list(*items: Any) -> list[Any]:
    return list(items)


@cache
def _machine() -> _Machine:
    return _Machine()


def run_script(data: RedisData, source: str, keys: list[bytes], args: list[bytes]) -> Any:
    """Run one script and return its answer as redis-py would."""
    return _machine().run(data, source, keys, args)
