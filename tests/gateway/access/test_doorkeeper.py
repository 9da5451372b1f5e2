"""How soon a key counts, and counts no more; who may start a gateway without any."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from broker_pipeline.errors import ConfigurationError, StateError, UnauthenticatedError
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.messages.keys import GatewayKey
from broker_pipeline.security.loopback import is_loopback
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.local.servers import EmbeddedRedis
from gateway.access.caller import ANYBODY
from gateway.access.doorkeeper import FRESH_S, Doorkeeper, make_doorkeeper
from gateway.settings import AccessSettings
from tests.gateway.conftest import OpenGateway
from tests.kit.fake_clock import FakeClock

KEY = GatewayKey(tenant="alice", scopes=("submit",), created_at=1.0)


async def test_a_new_key_counts_at_once_and_a_withdrawn_one_for_seconds(redis: RedisClient, namespace: str) -> None:
    keys, clock = GatewayKeys(redis, namespace), FakeClock()
    doorkeeper = Doorkeeper(keys, clock=clock)
    assert await doorkeeper.caller(None) == ANYBODY
    secret = await keys.create(KEY)
    clock.pass_s(FRESH_S)
    caller = await doorkeeper.caller(f"Bearer {secret}")
    assert (caller.tenant, caller.scopes, caller.sees_all) == ("alice", {"submit"}, False)
    second = await keys.create(KEY)
    assert (await doorkeeper.caller(f"bearer  {second}")).tenant == "alice"
    assert len(await keys.revoke("alice")) == 2
    assert (await doorkeeper.caller(f"Bearer {secret}")).tenant == "alice"
    clock.pass_s(FRESH_S)
    for withdrawn in (secret, second, None, "Basic abc", "Bearer "):
        with pytest.raises(UnauthenticatedError):
            await doorkeeper.caller(withdrawn and f"Bearer {withdrawn}")


async def test_redis_away_is_no_wrong_key(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server, open_redis(server.url, timeout_s=1.0) as redis:
        secret = await GatewayKeys(redis, "n").create(KEY)
        clock = FakeClock()
        doorkeeper = Doorkeeper(GatewayKeys(redis, "n"), operator_hash=None, needs_key=True, clock=clock)
        await doorkeeper.caller(f"Bearer {secret}")
        await server.stop()
        assert (await doorkeeper.caller(f"Bearer {secret}")).tenant == "alice", "for seconds, nobody is asked"
        clock.pass_s(FRESH_S)
        with pytest.raises(StateError):
            await doorkeeper.caller(f"Bearer {secret}")


async def test_redis_keeps_hashes_only(redis: RedisClient, namespace: str) -> None:
    secret = await GatewayKeys(redis, namespace).create(KEY)
    assert len(secret) >= 43
    held = await redis.hgetall(f"{namespace}:keys")  # type: ignore[misc]
    assert secret.removeprefix("bp-").encode() not in b"".join([*held, *held.values()])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_only_this_machine_reaches_the_loopback_interface(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway", ""])
def test_others_may_reach_any_other_address(host: str) -> None:
    assert not is_loopback(host)


async def test_beyond_this_machine_there_must_be_a_key(
    start_gateway: OpenGateway, redis: RedisClient, namespace: str
) -> None:
    with pytest.raises(ConfigurationError, match="broker-pipeline keys create"), raising_first_error():
        async with start_gateway(host="0.0.0.0", access=AccessSettings()):
            pass
    async with start_gateway(host="0.0.0.0", access=AccessSettings(is_insecure=True)) as (_, url):
        assert await status_of(url) == 200
    await GatewayKeys(redis, namespace).create(KEY)
    async with start_gateway(host="0.0.0.0", access=AccessSettings()) as (_, url):
        assert await status_of(url) == 401
    async with start_gateway(host="0.0.0.0", access=AccessSettings(is_insecure=True)) as (_, url):
        assert await status_of(url) == 401, "where there are keys, they count"


async def status_of(url: str) -> int:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/jobs".replace("0.0.0.0", "127.0.0.1")) as answer:
        return answer.status


@pytest.mark.parametrize("text", ["short", ""])
async def test_a_token_that_can_be_guessed_is_refused(
    tmp_path: Path, redis: RedisClient, namespace: str, text: str
) -> None:
    path = tmp_path / "token"
    for wrong in (str(path), str(tmp_path)):
        path.write_text(text)
        with pytest.raises(ConfigurationError):
            make_doorkeeper(GatewayKeys(redis, namespace), AccessSettings(operator_token_file=wrong), "127.0.0.1")
