"""Tells who sent a request by its key.

    no key known, and only this machine reaches the gateway (or --insecure)   anybody may submit and read
    otherwise                                                                `Authorization: Bearer KEY`
    the operator's token, which needs no Redis                               everything

Keys are remembered for a few seconds, so that a withdrawn one is refused soon after; a gateway that has once seen keys
goes on asking for them, also when Redis has lost them.
"""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from broker_pipeline.errors import ConfigurationError, UnauthenticatedError
from broker_pipeline.messages.keys import GatewayKey
from broker_pipeline.security.loopback import is_loopback
from broker_pipeline.state.access.gateway_keys import GatewayKeys, hash_of
from gateway.access.caller import ANYBODY, OPERATOR, Caller
from gateway.settings import AccessSettings

FRESH_S = 3.0
_MAX_REMEMBERED = 4096
_HEADER = "Authorization"


class Doorkeeper:
    """The keys as one gateway process knows them."""

    def __init__(
        self,
        keys: GatewayKeys,
        *,
        operator_hash: str | None = None,
        needs_key: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `needs_key`, nobody comes in without one; else only once there are keys. `clock` returns seconds."""
        self._keys = keys
        self._operator_hash = operator_hash
        self._needs_key = needs_key
        self._clock = clock
        self._looked_at = float("-inf")
        self._known: OrderedDict[str, tuple[float, GatewayKey]] = OrderedDict()

    async def check_exposure(self, host: str) -> None:
        """Refuse to serve an address that others reach while nobody has a key. Raises `ConfigurationError`."""
        if self._needs_key and self._operator_hash is None and not await self._keys.exist():
            raise ConfigurationError(
                f"others reach {host}, and there is no key to the gateway: make one with `broker-pipeline keys create "
                "NAME`, listen on 127.0.0.1, or let everybody in with --insecure",
                field="host",
            )

    async def caller(self, authorization: str | None) -> Caller:
        """Return who a request is from, by its header `Authorization`.

        Raises `UnauthenticatedError`, and `StateError` where Redis does not say whether there is such a key.
        """
        secret = _bearer(authorization)
        key_hash = None if secret is None else hash_of(secret)
        if key_hash and self._operator_hash and hmac.compare_digest(key_hash, self._operator_hash):
            return OPERATOR
        if not await self._asks_for_keys():
            return ANYBODY
        if key_hash is None:
            raise UnauthenticatedError("this gateway wants a key: send `Authorization: Bearer KEY`", field=_HEADER)
        key = await self._find(key_hash)
        return Caller(frozenset(key.scopes), key.tenant, key_hash, key.limits)

    async def _asks_for_keys(self) -> bool:
        now = self._clock()
        if not self._needs_key and now - self._looked_at >= FRESH_S:
            self._needs_key = await self._keys.exist()
            self._looked_at = now
        return self._needs_key

    async def _find(self, key_hash: str) -> GatewayKey:
        now = self._clock()
        found_at, key = self._known.get(key_hash, (float("-inf"), None))
        if key is None or now - found_at >= FRESH_S:
            self._known.pop(key_hash, None)
            if (key := await self._keys.find(key_hash)) is None:
                raise UnauthenticatedError("this gateway does not know this key (any more)", field=_HEADER)
            self._known[key_hash] = now, key
            if len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)
        return key


def make_doorkeeper(keys: GatewayKeys, settings: AccessSettings, host: str) -> Doorkeeper:
    """Build the doorkeeper of a gateway that listens on `host`; raises `ConfigurationError` for a token's file."""
    needs_key = not settings.is_insecure and not is_loopback(host)
    return Doorkeeper(keys, operator_hash=_operator_hash(settings.operator_token_file), needs_key=needs_key)


def _operator_hash(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", field="operator_token_file") from error
    if len(token) < 32:
        raise ConfigurationError(f"{path} holds no token of 32 characters or more", field="operator_token_file")
    return hash_of(token)


def _bearer(authorization: str | None) -> str | None:
    kind, _, secret = (authorization or "").strip().partition(" ")
    return secret.strip() if kind.lower() == "bearer" and secret.strip() else None
