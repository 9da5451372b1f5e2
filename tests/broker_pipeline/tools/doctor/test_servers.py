"""NATS and Redis in every state that the doctor knows, real ones."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from broker_pipeline.errors import ConfigurationError, StateError, TransportError
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.tools.doctor.broker import BrokerFacts, StreamFill, judge_broker, look_at_broker
from broker_pipeline.tools.doctor.redis_server import RedisFacts, judge_clock, judge_redis, look_at_redis
from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.server_binaries import find_nats_server
from broker_pipeline.tools.local.servers import EmbeddedRedis
from broker_pipeline.wire.transport import Transport
from tests.kit.findings import by_check, levels
from tests.kit.waiting import eventually

TIMEOUT_S = 5.0
GOOD = BrokerFacts("nats://h", "2.12.1", 8 << 20, 0.001)
GOOD_REDIS = RedisFacts("redis://h", "7.2.4", has_file=True, fsync="always", policy="noeviction", used_bytes=10)


@asynccontextmanager
async def nats_of(directory: Path, settings: str) -> AsyncIterator[str]:
    """A nats-server with settings of its own; its URL."""
    port = free_port()
    config = directory / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\n{settings}\n')
    argv = [str(find_nats_server()), "--config", str(config)]
    child = await ChildProcess.spawn("nats-server", argv, log_path=directory / "nats.log")
    try:
        await eventually(lambda: _listens(port))
        yield f"nats://127.0.0.1:{port}"
    finally:
        await child.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_good_broker_is_well_and_is_left_as_it_was(nats_url: str, namespace: str, transport: Transport) -> None:
    await JobQueue(transport, namespace).ensure()
    facts = await look_at_broker(nats_url, namespace, TIMEOUT_S)
    assert set(levels(judge_broker(facts)).values()) == {"ok"}
    assert [each.max_bytes for each in facts.streams] == [2**30]
    names = [info.config.name for info in await transport.jetstream().streams_info()]
    assert not [name for name in names if "doctor" in str(name)]


async def test_a_broker_that_is_not_there_and_an_address_that_is_none(namespace: str) -> None:
    with pytest.raises(TransportError, match="is it running"):
        await look_at_broker(f"nats://127.0.0.1:{free_port()}", namespace, 0.5)
    with pytest.raises(ConfigurationError, match="nats://HOST"):
        await look_at_broker("http://broker", namespace, 0.5)


async def test_a_broker_without_jetstream_and_with_small_messages(tmp_path: Path, namespace: str) -> None:
    async with nats_of(tmp_path, "max_payload: 65536") as url:
        found = by_check(judge_broker(await look_at_broker(url, namespace, TIMEOUT_S)))
    assert found["jetstream"].level == "fail"
    assert "enabled" in found["jetstream"].found
    assert found["max_payload"].level == "warn"
    assert "8MB" in found["max_payload"].remedy


async def test_a_jetstream_without_room(tmp_path: Path, namespace: str) -> None:
    settings = f'jetstream {{ store_dir: "{tmp_path}/js", max_file_store: 100KB }}'
    async with nats_of(tmp_path, settings) as url:
        found = by_check(judge_broker(await look_at_broker(url, namespace, TIMEOUT_S)))
    assert found["jetstream"].level == "fail"
    assert "room" in found["jetstream"].found


def test_brokers_by_their_facts() -> None:
    for changes, check, level in (
        ({"version": "2.8.4"}, "broker", "fail"),
        ({"version": "2.9.10"}, "broker", "warn"),
        ({"max_payload": 8192}, "max_payload", "fail"),
        ({"is_store_unknown": True}, "jetstream", "warn"),
        ({"streams": (StreamFill("jobs", 95, 100), StreamFill("files", 95, -1))}, "jetstream", "warn"),
    ):
        assert levels(judge_broker(replace(GOOD, **changes)))[check] == level, changes
    assert set(levels(judge_broker(GOOD)).values()) == {"ok"}


async def looked_at(server: EmbeddedRedis, redis: RedisClient) -> dict[str, str]:
    facts = await look_at_redis(redis, server.url, "ns")
    return levels([*judge_redis(facts), judge_clock(facts)])


async def test_a_redis_and_all_that_can_be_wrong_with_it(own_redis: EmbeddedRedis) -> None:
    async with open_redis(own_redis.url) as redis:
        assert set((await looked_at(own_redis, redis)).values()) == {"ok"}
        await redis.config_set("appendfsync", "everysec")
        assert (await looked_at(own_redis, redis))["redis file"] == "warn"
        await redis.config_set("appendonly", "no")
        assert (await looked_at(own_redis, redis))["redis file"] == "fail"
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        assert (await looked_at(own_redis, redis))["redis memory"] == "warn", "without a limit it evicts nothing yet"
        await redis.config_set("maxmemory", "1gb")
        assert (await looked_at(own_redis, redis))["redis memory"] == "fail"
        await redis.config_set("maxmemory-policy", "noeviction")
        assert (await looked_at(own_redis, redis))["redis memory"] == "ok"
        await redis.config_set("maxmemory", "1kb")
        assert {"redis": "fail", "redis memory": "fail"}.items() <= (await looked_at(own_redis, redis)).items()
        await redis.config_set("maxmemory", "0")
        await redis.replicaof("127.0.0.1", free_port())
        assert (await looked_at(own_redis, redis))["redis"] == "fail"
    await own_redis.stop()
    with pytest.raises(StateError, match="cannot reach"):
        async with open_redis(own_redis.url, timeout_s=0.5):
            pass


@pytest.mark.parametrize(
    ("denied", "expected"), [("config", {"redis file": "unseen", "redis memory": "ok"}), ("info", {"redis": "unseen"})]
)
async def test_a_redis_that_lets_us_not_ask_everything(
    own_redis: EmbeddedRedis, denied: str, expected: dict[str, str]
) -> None:
    async with open_redis(own_redis.url) as redis:
        rights = {"categories": ["+@all"], "commands": [f"-{denied}"], "keys": "nothing:*"}
        await redis.acl_setuser("doctor", enabled=True, passwords=["+x"], **rights)
        url = own_redis.url.replace("//", "//doctor:x@")
        async with open_redis(url) as limited:
            facts = await look_at_redis(limited, url, "ns")
    assert "x@" not in facts.url
    assert expected.items() <= levels(judge_redis(facts)).items()
    assert judge_clock(facts).level == "ok"


async def test_a_broker_that_lets_us_not_ask_jetstream(tmp_path: Path, namespace: str) -> None:
    settings = f"""jetstream {{ store_dir: "{tmp_path}/js" }}
      authorization {{ users: [{{ user: u, password: p, permissions: {{ publish: {{ deny: "$JS.API.>" }} }} }}] }}"""
    async with nats_of(tmp_path, settings) as url:
        facts = await look_at_broker(url.replace("//", "//u:p@"), namespace, 0.5)
        with pytest.raises(TransportError, match="refused"):
            await look_at_broker(url.replace("//", "//u:wrong@"), namespace, 2.0)
    assert facts.is_denied
    [finding] = [each for each in judge_broker(facts) if each.check == "jetstream"]
    assert finding.level == "unseen"
    assert "not looked at, this credential may not" in finding.found
    assert "p@" not in facts.url


def test_redis_by_its_facts() -> None:
    assert levels(judge_redis(replace(GOOD_REDIS, version="5.0.14")))["redis"] == "fail"
    assert levels(judge_redis(replace(GOOD_REDIS, used_bytes=85, max_bytes=100)))["redis memory"] == "warn"
    for ahead_s, error_s, level in ((0.5, 0.0, "ok"), (-3, 0.1, "warn"), (3, 2.5, "ok"), (-40, 0.1, "fail")):
        finding = judge_clock(replace(GOOD_REDIS, clock_ahead_s=ahead_s, clock_error_s=error_s))
        assert finding.level == level
        assert ("behind" in finding.found) == (ahead_s < 0)


async def test_a_server_that_never_answers_costs_its_time_only(namespace: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel connects, and nobody accepts
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StateError):
            async with open_redis(f"redis://{at}", timeout_s=0.2):
                pass
        with pytest.raises(TransportError):
            await look_at_broker(f"nats://{at}", namespace, 0.2)
