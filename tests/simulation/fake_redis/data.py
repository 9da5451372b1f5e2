"""What a Redis holds, and the commands that the project's scripts and clients use, on a virtual clock.

`test_redis.py` holds it against a real one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Arg = bytes | str | int | float

WALL_S = 1_700_000_000
"""Time of day when a simulation begins."""


def as_bytes(value: Arg) -> bytes:
    if type(value) is bytes:
        return value
    return value.encode() if isinstance(value, str) else b"%d" % value if value == int(value) else repr(value).encode()


class RedisData:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._values: dict[bytes, Any] = {}
        self._ends: dict[bytes, float] = {}

    def snapshot(self) -> tuple[dict[bytes, Any], dict[bytes, float]]:
        """Return everything as it is on disk now."""
        return copy.deepcopy(self._values), dict(self._ends)

    def restore(self, snapshot: tuple[dict[bytes, Any], dict[bytes, float]]) -> None:
        self._values, self._ends = snapshot

    def call(self, command: Arg, *args: Arg) -> Any:
        """Run one command; bytes, int, None and lists of them come back, as redis-py has them without decoding."""
        return _METHODS[command](self, *[arg if type(arg) is bytes else as_bytes(arg) for arg in args])

    def _find(self, key: bytes, empty: Callable[[], Any] | None = None) -> Any:
        if (ends := self._ends.get(key)) is not None and ends <= self._clock():
            self._del(key)
        if empty is None:
            return self._values.get(key)
        return self._values.setdefault(key, empty())

    def _drop_if_empty(self, key: bytes) -> None:
        if not self._values.get(key, True):
            self._del(key)

    # --- keys and strings ---

    def _time(self) -> list[bytes]:
        seconds, micros = divmod(round(self._clock() * 1e6), 10**6)
        return [b"%d" % (WALL_S + seconds), b"%d" % micros]

    def _ping(self) -> bytes:
        return b"PONG"

    def _exists(self, key: bytes) -> int:
        return int(self._find(key) is not None)

    def _del(self, *keys: bytes) -> int:
        num_before = len(self._values)
        for key in keys:
            self._ends.pop(key, None)
            self._values.pop(key, None)
        return num_before - len(self._values)

    def _type(self, key: bytes) -> dict[bytes, bytes]:
        """As Lua has it: in a table."""
        held = self._find(key)
        if isinstance(held, dict):
            kind = {bytes: b"hash", float: b"zset"}.get(type(next(iter(held.values()))), b"set")
        else:
            kind = {list: b"list", bytes: b"string"}.get(type(held), b"none")
        return {b"ok": kind}

    def _rename(self, key: bytes, name: bytes) -> bytes:
        self._del(name)
        self._values[name] = self._values.pop(key)
        if key in self._ends:
            self._ends[name] = self._ends.pop(key)
        return b"OK"

    _get = _find

    def _strlen(self, key: bytes) -> int:
        return len(self._find(key) or b"")

    def _set(self, key: bytes, value: bytes, *options: bytes) -> bytes:
        self._values[key] = value
        self._ends.pop(key, None)
        if options:
            unit, number = options
            self._ends[key] = self._clock() + int(number) / {b"EX": 1, b"PX": 1000}[unit]
        return b"OK"

    def _expire(self, key: bytes, seconds: bytes) -> int:
        return self._pexpire(key, b"%d" % (int(seconds) * 1000))

    def _pexpire(self, key: bytes, millis: bytes) -> int:
        if self._find(key) is None:
            return 0
        self._ends[key] = self._clock() + int(millis) / 1000
        return 1

    def _persist(self, key: bytes) -> int:
        return int(self._ends.pop(key, None) is not None)

    def _pttl(self, key: bytes) -> int:
        if self._find(key) is None:
            return -2
        return round((self._ends[key] - self._clock()) * 1000) if key in self._ends else -1

    # --- hashes ---

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        held = self._find(key, dict)
        num_before = len(held)
        held.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(held) - num_before

    def _hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        held = self._find(key, dict)
        is_new = field not in held
        held.setdefault(field, value)
        return int(is_new)

    def _hget(self, key: bytes, field: bytes) -> Any:
        return (self._find(key) or {}).get(field)

    def _hgetall(self, key: bytes) -> dict[bytes, bytes]:
        return dict(self._find(key) or {})

    def _hmget(self, key: bytes, *fields: bytes) -> list[Any]:
        held = self._find(key) or {}
        return [held.get(field) for field in fields]

    def _hvals(self, key: bytes) -> list[bytes]:
        return list((self._find(key) or {}).values())

    def _hdel(self, key: bytes, *fields: bytes) -> int:
        held = self._find(key) or {}
        num = sum(held.pop(field, None) is not None for field in fields)
        self._drop_if_empty(key)
        return num

    def _hincrby(self, key: bytes, field: bytes, by: bytes) -> int:
        held = self._find(key, dict)
        value = int(held.get(field, b"0")) + int(by)
        held[field] = b"%d" % value
        return value

    # --- lists and sets ---

    def _rpush(self, key: bytes, *items: bytes) -> int:
        held = self._find(key, list)
        held += items
        return len(held)

    def _llen(self, key: bytes) -> int:
        return len(self._find(key) or ())

    def _lrange(self, key: bytes, start: bytes, stop: bytes) -> list[bytes]:
        held = self._find(key) or []
        return list(held[_from_end(start, held) : _from_end(stop, held) + 1])

    def _sadd(self, key: bytes, *members: bytes) -> int:
        held = self._find(key, dict)
        num_before = len(held)
        held.update(dict.fromkeys(members))
        return len(held) - num_before

    def _srem(self, key: bytes, *members: bytes) -> int:
        held = self._find(key) or {}
        num_before = len(held)
        for member in members:
            held.pop(member, None)
        num = num_before - len(held)
        self._drop_if_empty(key)
        return num

    def _scard(self, key: bytes) -> int:
        return len(self._find(key) or ())

    def _srandmember(self, key: bytes, count: bytes) -> list[bytes]:
        return list(self._find(key) or ())[: int(count)]

    # --- sorted sets ---

    def _zadd(self, key: bytes, *pairs: bytes) -> int:
        held = self._find(key, dict)
        num_before = len(held)
        held.update(zip(pairs[1::2], map(float, pairs[::2]), strict=True))
        return len(held) - num_before

    _zrem = _srem

    _zcard = _scard

    def _zrange(self, key: bytes, start: bytes, stop: bytes) -> list[bytes]:
        members = self._sorted(key)
        return members[_from_end(start, members) : _from_end(stop, members) + 1]

    def _zrangebyscore(self, key: bytes, low: bytes, high: bytes, *limit: bytes) -> list[bytes]:
        held = self._find(key) or {}
        found = [member for member in self._sorted(key) if float(low) <= held[member] <= float(high)]
        return found[int(limit[1]) :][: int(limit[2])] if limit else found

    def _sorted(self, key: bytes) -> list[bytes]:
        held = self._find(key) or {}
        return sorted(held, key=lambda member: (held[member], member))


def _from_end(index: bytes, items: list[bytes]) -> int:
    number = int(index)
    return number + len(items) if number < 0 else number


_METHODS: dict[Arg, Callable[..., Any]] = {
    command: method
    for name, method in vars(RedisData).items()
    for command in (name[1:].upper(), name[1:].upper().encode())
    if name.startswith("_") and callable(method)
}
