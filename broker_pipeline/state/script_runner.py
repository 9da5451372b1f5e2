"""The Lua scripts in `scripts/`, run by name.

Each is one atomic step, guarded so that doing it again changes nothing: a client that got no answer may repeat its
call. They use commands of Redis 6.2 only, and Redis's own clock. Key names come in as templates of `redis_keys` with
`@` for the id, so that names stay in one place; for the same reason they are for one Redis (with replicas, with
Sentinel), not for a Redis Cluster.

What a script writes first are indexes, last the row itself, so that one that failed in the middle may run again:

    script ──► an index is no index ──► moved to `KEY:garbled`, and said ──► the script once more
          └──► its own row is garbled ──► `GarbledStateError`: for whoever asked about that row
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import orjson
import structlog

from broker_pipeline.errors import GarbledStateError
from broker_pipeline.state.redis_client import RedisClient, state_errors

T = TypeVar("T")

log = structlog.get_logger()

_ASIDE_S = 7 * 24 * 3600
"""How long what was moved out of the way is kept for somebody to look at."""


class ScriptRunner:
    """Runs the scripts of one folder. A Redis that forgot a script is taught it again."""

    def __init__(
        self,
        redis: RedisClient,
        folder: str,
        keys: Sequence[str],
        shared_args: Mapping[str, Any],
        indexes: Mapping[str, str] | None = None,
    ) -> None:
        """Send `keys` as KEYS, and `shared_args` with the arguments of every call.

        `indexes` are keys that all rows share, each with its type, or `counters`: a hash of whole numbers.
        """
        self._redis = redis
        self._keys = list(keys)
        self._shared_args = shared_args
        self._indexes = indexes or {}
        self._scripts = {name: redis.register_script(source) for name, source in _sources(folder).items()}

    async def __call__(self, name: str, args: Mapping[str, Any], action: str, *content: bytes) -> Any:
        """Run the script `name` with `args` as one JSON object, and `content` after it as it is.

        Raises `StateError` starting with `action`.
        """
        # Lua has no integers of 64 bits: a number beyond 53 is refused here rather than rounded there.
        encoded = orjson.dumps({**self._shared_args, **args}, option=orjson.OPT_STRICT_INTEGER)
        return await self.mending(lambda: self._run(name, [encoded, *content], action))

    async def mending(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call; where an index may be none, see to it (another may have, meanwhile), and call once more."""
        try:
            return await call()
        except GarbledStateError:
            if not self._indexes:
                raise
            await self._set_aside()
            return await call()

    async def _set_aside(self) -> None:
        """Move indexes that are none out of the way. What they held is hidden from then on."""
        args = orjson.dumps({"types": list(self._indexes.values()), "for_s": _ASIDE_S})
        script = self._redis.register_script(_sources("indexes")["set_aside"])
        with state_errors("cannot move what is garbled out of the way"):
            moved: list[list[bytes]] = await self._redis.scripts.run(script, list(self._indexes), [args])
        for key, found in moved:
            log.error("index_garbled", key=key.decode(), found=found.decode(), moved_to=f"{key.decode()}:garbled")

    async def _run(self, name: str, args: Sequence[bytes], action: str) -> Any:
        with state_errors(action):
            return await self._redis.scripts.run(self._scripts[name], self._keys, args)


@cache
def _sources(folder: str) -> dict[str, str]:
    """Return a folder's scripts by name, each with the preludes of all and of the folder before it."""
    scripts = files("broker_pipeline.state").joinpath("scripts")
    texts = {path.name.removesuffix(".lua"): path.read_text("utf-8") for path in scripts.joinpath(folder).iterdir()}
    prelude = scripts.joinpath("prelude.lua").read_text("utf-8") + texts.pop("prelude", "")
    return {name: prelude + text for name, text in texts.items()}
