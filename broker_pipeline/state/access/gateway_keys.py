"""Keys to the gateway in Redis, by the hash of each: whoever reads Redis cannot use them.

A key is 256 random bits, so that one round of SHA-256 keeps it, and finding a hash says nothing of its neighbours.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, cast

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import KeyNotFoundError
from broker_pipeline.messages.keys import GatewayKey
from broker_pipeline.state.redis_client import RedisClient, state_errors

ID_LENGTH = 12
_PREFIX = "bp-"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(GatewayKey).decode


def new_secret() -> str:
    """Return a key that nobody has."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """Return what Redis knows a key by; its first 12 digits are what people call it by."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


class GatewayKeys:
    """The keys of one namespace."""

    def __init__(self, redis: RedisClient, namespace: str) -> None:
        """Share the keys with every gateway of this Redis and namespace."""
        self._redis = redis
        self._name = redis_keys.gateway_keys(namespace)

    async def create(self, key: GatewayKey) -> str:
        """Store a new key and return it: it is never seen again."""
        secret = new_secret()
        with state_errors("cannot store a key"):
            await cast("Any", self._redis.hset(self._name, hash_of(secret), _encode(key).decode()))
        return secret

    async def find(self, key_hash: str) -> GatewayKey | None:
        """Return the key with this hash, None where there is none (any more)."""
        with state_errors("cannot look a key up"):
            found = await cast("Any", self._redis.hget(self._name, key_hash))
            return _decode(found) if found else None

    async def exist(self) -> bool:
        """Say whether there are any."""
        with state_errors("cannot count keys"):
            return bool(await cast("Any", self._redis.hlen(self._name)))

    async def list(self) -> dict[str, GatewayKey]:
        """Return all keys by their hash, oldest first."""
        with state_errors("cannot list keys"):
            rows: dict[bytes, bytes] = await cast("Any", self._redis.hgetall(self._name))
            keys = {name.decode(): _decode(row) for name, row in rows.items()}
        return dict(sorted(keys.items(), key=lambda item: item[1].created_at))

    async def weights(self) -> dict[str, float]:
        """Return the weight of each tenant that has a key."""
        weights: dict[str, float] = {}
        for key in (await self.list()).values():
            weights[key.tenant] = max(key.weight, weights.get(key.tenant, 0.0))
        return weights

    async def revoke(self, chosen: str) -> dict[str, GatewayKey]:
        """Withdraw all keys of a tenant, or the one whose hash begins like this; return them.

        Raises `KeyNotFoundError` where there is none, or the begin of a hash is that of several.
        """
        keys = await self.list()
        found = {name: key for name, key in keys.items() if key.tenant == chosen}
        if not found and len(chosen) >= ID_LENGTH:
            found = {name: key for name, key in keys.items() if name.startswith(chosen)}
        if not found:
            known = ", ".join(sorted({key.tenant for key in keys.values()})) or "nobody"
            raise KeyNotFoundError(f"no key is called {chosen}, or belongs to it; keys belong to: {known}", field="KEY")
        with state_errors("cannot withdraw a key"):
            await cast("Any", self._redis.hdel(self._name, *found))
        return found
