import asyncio
import signal
from typing import Any

import pytest
from redis.exceptions import ResponseError

from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.local.servers import EmbeddedRedis
from tests.kit.waiting import eventually

INCREMENT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
REFUSE = "return redis.error_reply('REFUSED')"


async def num_writes(redis: RedisClient) -> int:
    """Sockets that the server has read from so far."""
    return int((await redis.info("stats"))["total_reads_processed"])


async def test_calls_that_come_together_share_a_round_trip(own_redis: EmbeddedRedis) -> None:
    async with open_redis(own_redis.url) as redis:
        script = redis.register_script(INCREMENT)
        assert await redis.scripts.run(script, ["n"], [b"1"]) == 1
        before = await num_writes(redis)
        values = await asyncio.gather(*(redis.scripts.run(script, ["n"], [b"1"]) for _ in range(100)))
        assert values == list(range(2, 102))
        assert await num_writes(redis) - before <= 3


async def test_an_answer_is_that_of_its_own_call_also_where_others_fail_or_are_cancelled(
    redis: RedisClient, namespace: str
) -> None:
    increment, refuse = redis.register_script(INCREMENT), redis.register_script(REFUSE)
    calls: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(redis.scripts.run(refuse if index % 3 == 0 else increment, [namespace], [b"1"]))
        for index in range(9)
    ]
    await asyncio.sleep(0)
    calls[1].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers[::3]] == [ResponseError] * 3
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answers[index] for index in (2, 4, 5, 7, 8)] == [1, 2, 3, 4, 5]  # who is cancelled in time asks nothing


async def test_a_server_that_forgets_its_scripts_is_taught_each_once(own_redis: EmbeddedRedis) -> None:
    async with open_redis(own_redis.url) as redis:
        script = redis.register_script(INCREMENT)
        for round_number in range(1, 4):
            await redis.script_flush()
            await asyncio.gather(*(redis.scripts.run(script, ["n"], [b"1"]) for _ in range(10)))
            assert await redis.get("n") == b"%d" % (10 * round_number)


async def test_closing_leaves_nobody_waiting(own_redis: EmbeddedRedis) -> None:
    async with open_redis(own_redis.url) as redis:
        own_redis.kill(signal.SIGSTOP)
        call = asyncio.ensure_future(redis.scripts.run(redis.register_script(INCREMENT), ["n"], [b"1"]))
        await asyncio.sleep(0)
    own_redis.kill(signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_giving_up_leaves_nobody_waiting_whose_call_was_still_to_be_sent(own_redis: EmbeddedRedis) -> None:
    async with open_redis(own_redis.url) as redis:
        script = redis.register_script(INCREMENT)
        await redis.scripts.run(script, ["n"], [b"1"])
        own_redis.kill(signal.SIGSTOP)
        first = asyncio.ensure_future(redis.scripts.run(script, ["n"], [b"1"]))
        await eventually(lambda: redis.scripts._sending is not None and not redis.scripts._waiting)
        second = asyncio.ensure_future(redis.scripts.run(script, ["n"], [b"1"]))
        await eventually(lambda: bool(redis.scripts._waiting))
        assert redis.scripts._sending is not None
        redis.scripts._sending.cancel()
        async with asyncio.timeout(5):
            answers = await asyncio.gather(first, second, return_exceptions=True)
        own_redis.kill(signal.SIGCONT)
        assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 2


async def test_whatever_goes_wrong_callers_are_told_and_later_calls_are_sent(
    redis: RedisClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that is cancelled instead ends in silence, and all that its task was for."""
    script = redis.register_script(INCREMENT)

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("the handler is closed")

    with monkeypatch.context() as broken:
        broken.setattr(redis.connection_pool, "get_connection", crash)
        calls = [redis.scripts.run(script, [namespace], [b"1"]) for _ in range(3)]
        assert [str(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [
            "the handler is closed"
        ] * 3
    assert await redis.scripts.run(script, [namespace], [b"1"]) == 1
