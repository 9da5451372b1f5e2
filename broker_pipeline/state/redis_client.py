"""The connection to Redis: bounded in time and in number, never repeating a command by itself.

redis-py repeats commands by default when a connection breaks, also those that are not idempotent: an RPUSH then
happens twice, without an exception. Here nothing is repeated; whoever may repeat (all of `scripts/` is guarded)
decides so itself.

A failover leaves connections open to a server that is no use any more: demoted, loading, cut off from its replicas, or
gone. The first answer that says so ends all idle connections, so that what comes next goes where the URL, or Sentinel,
leads by then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import hiredis
import msgspec
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker_pipeline import redis_keys
from broker_pipeline.cancellation import cancellation_kept
from broker_pipeline.errors import ConfigurationError, GarbledStateError, StateDeniedError, StateError
from broker_pipeline.process.dead_connections import TCP_OPTIONS
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.security.tls_failures import causes, tls_failure
from broker_pipeline.state.pools.encrypted import context_for, server_pool
from broker_pipeline.state.pools.sentinel import is_sentinel_url, sentinel_pool
from broker_pipeline.state.script_calls import Command, ScriptCalls

DEFAULT_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 32
_PROBE_TTL_S = 60
_CONNECT_TIMEOUT_S = 1.0
"""As `dead_connections.CONNECT_TIMEOUT_S`, with the handshake of TLS."""
_NUM_TRIES = 3
_UNFIT_SERVER = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, MasterDownError)
_DENIED = (AuthenticationError, NoPermissionError)
_DENIED_WORDS = ("NOPERM", "ACL failure", "The user executing the script can't")
"""Somewhere in an error of a script: of Redis 7, of Valkey, of Redis 6.2."""
_UNFIT_WORDS = ("READONLY", "NOREPLICAS")
"""Begin of an error, or, from a script in Redis 6.2, somewhere in it."""
_GARBLED_WORDS = (
    *("WRONGTYPE", "not an integer", "not a valid float", "not a float", "would overflow"),
    *("attempt to ", "bad argument", "Expected "),  # Lua's, and its JSON's
    "arguments must be strings or integers",  # where a field is missing
)
"""Somewhere in an error that what Redis holds is to blame for."""


class _Honest(Connection):
    """Says so when it was closed meanwhile: of uvloop's transports that is a RuntimeError, which nobody expects."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send a command; raises redis-py's ConnectionError also where this end was closed."""
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise RedisConnectionError(f"the connection was closed: {error}") from error


class RedisClient(Redis):
    """A client whose connections do not outlive what made their server the right one."""

    def __init__(self, connection_pool: BlockingConnectionPool) -> None:
        """Own the connections of a pool."""
        connected_by = connection_pool.connection_class
        connection_pool.connection_class = type(connected_by.__name__, (_Honest, connected_by), {})
        super().__init__(connection_pool=connection_pool)
        self.auto_close_connection_pool = True
        self.scripts = ScriptCalls(self.round_trip, self.note_error)
        """Calls of scripts, which share round trips."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command; when the server turns out to be unfit, leave all its connections."""
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisError as error:
            await self.note_error(error)
            raise

    async def round_trip(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands together and return their answers, among them errors of the server's.

        A pipeline of redis-py does the same for half as much processor time again.
        """
        connection = await self.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command([hiredis.pack_command(command) for command in commands])
            return [await _answer(connection) for _ in commands]
        finally:
            await self.connection_pool.release(connection)

    async def note_error(self, error: RedisError) -> None:
        """Leave all idle connections when an error says that their server is unfit."""
        if _is_unfit(error):
            await self.connection_pool.disconnect(inuse_connections=False)


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


@asynccontextmanager
async def open_redis(
    url: str,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    max_connections: int = _MAX_CONNECTIONS,
    credentials: Credentials | None = None,
) -> AsyncIterator[RedisClient]:
    """Connect, check that Redis answers, close at the end.

    Replies are bytes. Every command ends within about `timeout_s`, by `StateError` where it goes through this module.
    Raises `ConfigurationError` for a URL that is none, `StateError` when Redis cannot be reached, `StateDeniedError`
    when it refuses the credentials, `CertificateError` where a certificate is not good. With `credentials` it is
    reached encrypted, unless it is on the loopback interface.
    """
    client = _client(url, timeout_s, max_connections, credentials)
    try:
        await _reach(client, public_url(url))
        yield client
    finally:
        await client.scripts.close()
        await client.aclose()


async def _reach(client: RedisClient, shown: str) -> None:
    """Ask for an answer; again where the connection was reset, which may hide why: TLS's alert can be lost by it."""
    for num_left in reversed(range(_NUM_TRIES)):
        try:
            with state_errors(f"cannot reach Redis at {shown} (--redis-url)"):
                await client.ping()
        except StateError as error:
            if num_left and any(isinstance(cause, ConnectionResetError) for cause in causes(error)):
                continue
            raise tls_failure(error, f"Redis at {shown}") or error from error
        else:
            return


def public_url(url: str) -> str:
    """Return the URL without user name and password, for messages."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(not a URL)"
    return f"{parts.scheme}://{host}{parts.path}"


class state_errors(cancellation_kept):  # noqa: N801 - reads as what it does
    """Turns what redis-py raises into a `StateError` that starts with `action`; keeps cancellations that it loses.

    Where the server answers and what it holds is no use, that is a `GarbledStateError`.
    """

    __slots__ = ("_action",)

    def __init__(self, action: str) -> None:
        self._action = action

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if isinstance(error, (RedisError, OSError, msgspec.MsgspecError, ValueError)):
            raise _state_error(self._action, error) from error


def _state_error(action: str, error: Exception) -> StateError:
    if not isinstance(error, (RedisError, OSError)):
        return GarbledStateError(f"{action}: Redis holds something that this version did not write: {error}")
    reason = _reason(error)
    if isinstance(error, _DENIED) or any(word in reason for word in _DENIED_WORDS):
        return StateDeniedError(f"{action}: Redis does not allow it: {reason}")
    is_garbled = isinstance(error, ResponseError) and any(word in reason for word in _GARBLED_WORDS)
    return (GarbledStateError if is_garbled else StateError)(f"{action}: {reason}")


async def check_takes_writes(redis: RedisClient, namespace: str) -> None:
    """Write, since a Redis that is full, a replica or without a disk goes on answering reads. Raises `StateError`."""
    with state_errors("cannot write"):
        await redis.set(redis_keys.probe(namespace), b"", ex=_PROBE_TTL_S)


async def memory_used(redis: RedisClient) -> float:
    """Return the share of `maxmemory` that is used, 0 where there is none. Raises `StateError`."""
    with state_errors("cannot ask for its memory"):
        info: dict[str, Any] = await redis.info("memory")
    limit = int(info.get("maxmemory", 0))
    return int(info["used_memory"]) / limit if limit else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, MasterNotFoundError):  # redis-py adds each client's settings, over many lines
        return f"{str(error).partition(' : ')[0]}: no sentinel that answers knows one that is up"
    return str(error) or type(error).__name__


def _is_unfit(error: RedisError) -> bool:
    return isinstance(error, _UNFIT_SERVER) or any(word in str(error) for word in _UNFIT_WORDS)


def _client(url: str, timeout_s: float, max_connections: int, credentials: Credentials | None) -> RedisClient:
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": timeout_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(timeout_s, _CONNECT_TIMEOUT_S),
        "socket_keepalive": True,
        "socket_keepalive_options": TCP_OPTIONS,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "decode_responses": False,
        "protocol": 2,
        **(credentials.redis_options if credentials else {}),
    }
    try:
        context = context_for(url, credentials) if credentials else None
        if is_sentinel_url(url):
            pool: BlockingConnectionPool = sentinel_pool(url, options, context)
        else:
            pool = server_pool(url, options, context)
    except ValueError as error:
        raise ConfigurationError(
            f"--redis-url {public_url(url)} is not a Redis URL: {error} (redis+sentinel://HOST:PORT,…/SERVICE is one "
            "as well)",
            field="redis_url",
        ) from error
    return RedisClient(pool)
