"""The Lua scripts in `scripts/`, run by name.

Each is one atomic step, guarded so that doing it again changes nothing: a client that got no answer may repeat its
call. They use commands of Redis 6.2 only, and Redis's own clock. Key names come in as templates of `redis_keys` with
`@` for the id, so that names stay in one place; for the same reason they are for one Redis (with replicas, with
Sentinel), not for a Redis Cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from broker_pipeline.state.redis_client import RedisClient, state_errors


class ScriptRunner:
    """Runs the scripts of one folder. A Redis that forgot a script is taught it again."""

    def __init__(self, redis: RedisClient, folder: str, keys: Sequence[str], shared_args: Mapping[str, Any]) -> None:
        """Send `keys` as KEYS, and `shared_args` with the arguments of every call."""
        self._redis = redis
        self._keys = list(keys)
        self._shared_args = shared_args
        self._scripts = {name: redis.register_script(source) for name, source in _sources(folder).items()}

    async def __call__(self, name: str, args: Mapping[str, Any], action: str, *content: bytes) -> Any:
        """Run the script `name` with `args` as one JSON object, and `content` after it as it is.

        Raises `StateError` starting with `action`.
        """
        # Lua has no integers of 64 bits: a number beyond 53 is refused here rather than rounded there.
        encoded = orjson.dumps({**self._shared_args, **args}, option=orjson.OPT_STRICT_INTEGER)
        with state_errors(action):
            return await self._redis.scripts.run(self._scripts[name], self._keys, [encoded, *content])


@cache
def _sources(folder: str) -> dict[str, str]:
    """Return a folder's scripts by name, each with the preludes of all and of the folder before it."""
    scripts = files("broker_pipeline.state").joinpath("scripts")
    texts = {path.name.removesuffix(".lua"): path.read_text("utf-8") for path in scripts.joinpath(folder).iterdir()}
    prelude = scripts.joinpath("prelude.lua").read_text("utf-8") + texts.pop("prelude", "")
    return {name: prelude + text for name, text in texts.items()}
