"""URLs that name sentinels, and who is found behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_pipeline.errors import ConfigurationError, StateError
from broker_pipeline.state.pools.sentinel import is_sentinel_url, sentinel_pool
from broker_pipeline.state.redis_client import open_redis
from tests.kit.running.redis_sentinel import sentinel_group
from tests.kit.waiting import eventually

OPTIONS = {"retry": None, "retry_on_error": [], "protocol": 2, "max_connections": 4}


def test_a_url_says_sentinels_service_database_and_credentials() -> None:
    url = "rediss+sentinel://user:p%40ss@a,b:7000,[::1]:7001/captions/3?sentinel_username=eye&sentinel_password=w"
    assert is_sentinel_url(url)
    pool = sentinel_pool(url, OPTIONS)
    kwargs = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in kwargs] == [("a", 26379), ("b", 7000), ("::1", 7001)]
    assert {(each["username"], each["password"]) for each in kwargs} == {("eye", "w")}
    assert pool.service_name == "captions"
    of_servers = pool.connection_kwargs
    assert (of_servers["db"], of_servers["username"], of_servers["password"]) == (3, "user", "p@ss")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+sentinel://a:26379", "ends in /SERVICE"),
        ("redis+sentinel://a:26379/captions/x", "ends in /SERVICE"),
        ("redis+sentinel://a,,b/captions", "separated by commas"),
        ("redis+sentinel:///captions", "separated by commas"),
        ("redis+sentinel://a:port/captions", "Port could not be cast|invalid literal"),
        ("redis+sentinel://a/captions?password=x", "password is none of sentinel_username, sentinel_password"),
        ("sentinel://a/captions", "redis\\+sentinel://HOST:PORT"),
    ],
)
async def test_a_wrong_url_is_refused_by_the_flags_name(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        async with open_redis(url):
            pass
    assert "--redis-url" in caught.value.message
    assert caught.value.field == "redis_url"
    assert "x" not in caught.value.message.partition("?")[2]


async def test_the_master_is_found_by_any_sentinel_and_who_is_promoted_after_it(tmp_path: Path) -> None:
    async with sentinel_group(tmp_path / "redis") as group, open_redis(group.url, timeout_s=1.0) as client:
        await client.set("written", "1")
        await group.sentinels[0].kill()
        await (await group.master_now()).kill()

        async def is_written() -> bool:
            try:
                async with open_redis(group.url, timeout_s=1.0) as another:
                    await another.set("written", "2")
            except StateError:
                return False
            return bool(await client.set("written", "3"))

        await eventually(is_written, timeout_s=60)
        assert (await (await group.master_now()).info("replication"))["role"] == "master"


async def test_a_service_that_sentinels_do_not_know_is_said() -> None:
    with pytest.raises(
        StateError, match=r"No master found for 'nobody': no sentinel that answers knows one that is up$"
    ):
        async with open_redis("redis+sentinel://127.0.0.1:1/nobody"):
            pass
