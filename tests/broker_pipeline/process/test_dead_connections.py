"""Connections to servers that become unreachable and come back, as real packets that vanish."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from broker_pipeline.errors import StateError
from broker_pipeline.state.redis_client import open_redis, state_errors
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from broker_pipeline.wire.transport import Transport
from tests.kit.waiting import eventually
from trials.soak.faults.network import Network, why_no_network

pytestmark = pytest.mark.skipif(why_no_network() is not None, reason=str(why_no_network()))

NOTICED_S = 3.0
"""Within this the loss is noticed, and the return: TCP alone takes longer for either after four seconds."""
AWAY_S = 4.0


async def test_nats_is_given_up_when_it_is_cut_off_and_found_when_it_is_back(tmp_path: Path) -> None:
    async with (
        Network(["nats"]) as network,
        EmbeddedNats(tmp_path, place=network.place("nats")) as server,
        Transport.open(server.url, name="test") as transport,
    ):
        cut_at = time.monotonic()
        await network.cut("nats")
        await eventually(lambda: not transport.is_connected, timeout_s=NOTICED_S)
        await eventually(lambda: time.monotonic() > cut_at + AWAY_S)
        await network.mend("nats")
        await eventually(lambda: transport.is_connected, timeout_s=NOTICED_S)


async def test_nats_is_given_up_where_the_kernel_goes_on_with_a_connection(tmp_path: Path) -> None:
    async with (
        Network(["nats"]) as network,
        EmbeddedNats(tmp_path, place=network.place("nats")) as server,
        Transport.open(server.url, name="test") as transport,
    ):
        for connection in (transport.link.small, transport.link.bulk):
            connection.socket.set_option(socket.TCP_USER_TIMEOUT, 0)
        await network.cut("nats")
        await eventually(
            lambda: not (transport.link.small.is_connected or transport.link.bulk.is_connected), timeout_s=NOTICED_S
        )


async def test_redis_is_given_up_when_it_is_cut_off_and_found_when_it_is_back(tmp_path: Path) -> None:
    async with (
        Network(["redis"]) as network,
        EmbeddedRedis(tmp_path, place=network.place("redis")) as server,
        open_redis(server.url, timeout_s=60.0) as client,
    ):

        async def answers() -> bool:
            try:
                with state_errors("ping"):
                    return bool(await client.ping())
            except StateError:
                return False

        cut_at = time.monotonic()
        await network.cut("redis")
        assert not await answers()
        assert time.monotonic() - cut_at < NOTICED_S, "long before the command's own time-out"
        while time.monotonic() < cut_at + AWAY_S:
            assert not await answers()
        await network.mend("redis")
        await eventually(answers, timeout_s=NOTICED_S)


async def test_a_server_that_only_hangs_is_waited_for(tmp_path: Path) -> None:
    async with EmbeddedNats(tmp_path) as server, Transport.open(server.url, name="test") as transport:
        hung_at = time.monotonic()
        server.kill(signal.SIGSTOP)
        await eventually(lambda: time.monotonic() > hung_at + 2.5)
        server.kill(signal.SIGCONT)
        await transport.link.barrier()
        assert transport.link.num_reconnects == 0
