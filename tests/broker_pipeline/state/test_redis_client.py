import asyncio
import signal
import socket
import time

import msgspec
import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from broker_pipeline import exit_codes
from broker_pipeline.errors import ConfigurationError, GarbledStateError, StateDeniedError, StateError
from broker_pipeline.state.redis_client import RedisClient, open_redis, public_url, state_errors
from broker_pipeline.state.script_runner import ScriptRunner
from broker_pipeline.tools.local.servers import EmbeddedRedis


def lease_scripts(redis: RedisClient) -> ScriptRunner:
    return ScriptRunner(redis, "lease", ["lease", "epoch"], {"instance": "a", "ttl_ms": 10_000})


async def acquire(run: ScriptRunner) -> list[int]:
    taken: list[int] = await run("acquire", {"last_epoch": 0}, "cannot take it")
    return taken


async def test_wrong_url_names_the_setting_and_hides_the_password() -> None:
    with pytest.raises(ConfigurationError, match="not a Redis URL") as caught:
        async with open_redis("http://user:secret@host:1/0"):
            pass
    assert caught.value.field == "redis_url"
    assert "secret" not in caught.value.message


async def test_unreachable_redis_is_a_state_error_that_says_where() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StateError, match=f"cannot reach Redis at redis://127.0.0.1:{port}/3") as caught:
            async with open_redis(f"redis://:secret@127.0.0.1:{port}/3"):
                pass
    assert "secret" not in caught.value.message
    assert exit_codes.exit_code_of(caught.value) == exit_codes.UNAVAILABLE


def test_a_connection_that_is_closed_meanwhile_is_an_error_of_the_connection_under_uvloop(redis_url: str) -> None:
    async def write_to_a_closed_one() -> None:
        async with open_redis(redis_url) as client:
            connection = await client.connection_pool.get_connection()
            connection._writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(RedisConnectionError):
                await connection.send_command("PING")
            await client.connection_pool.release(connection)
            assert await client.ping(), "it connects anew"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write_to_a_closed_one())


async def test_silent_redis_is_a_state_error_within_the_timeout(own_redis: EmbeddedRedis) -> None:
    async with open_redis(own_redis.url, timeout_s=0.3) as client:
        own_redis.kill(signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(StateError, match="cannot take it"):
            await acquire(lease_scripts(client))
        assert time.monotonic() - started < 1.0
        own_redis.kill(signal.SIGCONT)


async def test_a_restarted_redis_is_used_again_and_taught_the_scripts(own_redis: EmbeddedRedis) -> None:
    async with open_redis(own_redis.url) as client:
        run = lease_scripts(client)
        first = await acquire(run)
        own_redis.kill()
        await own_redis.process.wait()
        with pytest.raises(StateError):
            await acquire(run)
        await own_redis.restart()
        assert await acquire(run) == first


async def test_a_script_whose_answer_was_lost_is_not_repeated(own_redis: EmbeddedRedis) -> None:
    """The server runs the script, but the client hears nothing: exactly one more call may have come."""
    async with open_redis(own_redis.url, timeout_s=0.3) as client, open_redis(own_redis.url) as other:
        run = lease_scripts(client)
        await acquire(run)
        await other.config_resetstat()
        own_redis.kill(signal.SIGSTOP)
        with pytest.raises(StateError):
            await acquire(run)
        own_redis.kill(signal.SIGCONT)
        await other.ping()  # the answer may come before what waited in other sockets is read
        assert (await other.info("commandstats"))["cmdstat_evalsha"]["calls"] == 1


async def test_more_callers_than_connections_wait_for_their_turn(redis_url: str, namespace: str) -> None:
    async with open_redis(redis_url, max_connections=2) as client:
        values = await asyncio.gather(*(client.incr(namespace) for _ in range(200)))
    assert sorted(values) == list(range(1, 201))


def test_public_url_drops_credentials() -> None:
    assert public_url("redis://me:pw@host:6379/2") == "redis://host:6379/2"
    assert public_url("redis://host") == "redis://host"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RedisConnectionError("gone"), StateError),
        (OSError("gone"), StateError),
        (NoPermissionError("no"), StateDeniedError),
        (ResponseError("WRONGTYPE Operation against a key"), GarbledStateError),
        (ResponseError("odd"), StateError),
        (msgspec.DecodeError("odd"), GarbledStateError),
        (ValueError("odd"), GarbledStateError),
        (KeyError("a bug"), KeyError),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ],
)
def test_each_error_has_its_class(error: BaseException, kind: type[BaseException]) -> None:
    with pytest.raises(kind) as caught, state_errors("asking"):
        raise error
    assert type(caught.value) is kind
    assert error in (caught.value, caught.value.__cause__)
