import asyncio
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import aiohttp
import nats
import psutil
import pytest
import redis.asyncio

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.place import Place
from broker_pipeline.tools.local.server_binaries import find_redis_server
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis, EmbeddedServer
from tests.kit.waiting import eventually, wait_until

SERVERS = [EmbeddedNats, EmbeddedRedis]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def listening_addresses(pid: int) -> set[str]:
    return {c.laddr.ip for c in psutil.Process(pid).net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}


async def test_nats_keeps_stream_messages_across_kill_and_restart_on_the_same_port(tmp_path: Path) -> None:
    async with EmbeddedNats(tmp_path) as server:
        url = server.url
        client = await nats.connect(url)
        assert client.max_payload == 8 * 1024 * 1024
        stream = client.jetstream()
        await stream.add_stream(name="jobs", subjects=["jobs"])
        await stream.publish("jobs", b"one")
        await client.close()

        server.kill()
        await server.process.wait()
        assert await server.restart() == url

        client = await nats.connect(url)
        assert (await client.jetstream().stream_info("jobs")).state.messages == 1
        await client.close()


async def test_nats_tells_other_users_of_this_machine_nothing(tmp_path: Path) -> None:
    """Its monitoring has no passwords: only `up`, which made it, knows where it is."""
    async with EmbeddedNats(tmp_path) as server:
        [ports] = (tmp_path / "ports").glob("*.ports")
        [url] = json.loads(ports.read_bytes())["monitoring"]
        async with aiohttp.ClientSession() as http:
            for path in ("/", "/connz?subs=1", "/varz", "/healthz"):
                async with http.get(url + path) as answer:
                    assert answer.status == 404, path
            config = (tmp_path / "nats-server.conf").read_text()
            base = json.loads(config.partition("http_base_path: ")[2])
            async with http.get(f"{url}{base}/connz") as answer:
                assert answer.status == 200
        assert (tmp_path / "nats-server.conf").stat().st_mode & 0o077 == 0
        assert await server.trouble() is None


async def test_redis_keeps_writes_across_kill_and_restart_on_the_same_port(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        url = server.url
        async with redis.asyncio.Redis.from_url(url) as client:
            await client.set("key", "value")
            assert (await client.config_get("maxmemory-policy", "appendonly", "appendfsync")) == {
                "maxmemory-policy": "noeviction",
                "appendonly": "yes",
                "appendfsync": "always",
            }
        server.kill()
        await server.process.wait()
        assert await server.restart() == url
        async with redis.asyncio.Redis.from_url(url) as client:
            assert await client.get("key") == b"value"


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_new_process_on_the_directory_finds_what_was_there(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    directory = tmp_path / "Ablage für 猫"
    async with kind(directory) as first:
        port = port_of(first.url)
    async with kind(directory, port=port) as second:
        assert port_of(second.url) == port


@pytest.mark.parametrize("kind", SERVERS)
async def test_listens_on_loopback_only_and_stops_cleanly(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    async with kind(tmp_path) as server:
        pid = server.process.pid
        assert listening_addresses(pid) == {"127.0.0.1"}
    assert not psutil.pid_exists(pid)
    assert server.process.returncode in {0, 1}  # nats-server ends with 1 after SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(server.url)))


@pytest.mark.parametrize("kind", SERVERS)
async def test_at_a_place_it_listens_there_and_is_run_by_the_prefix(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    place = Place("127.0.0.2", ("/usr/bin/nice", "-n", "3"))
    async with kind(tmp_path, place=place) as server:
        assert "//127.0.0.2:" in server.url
        assert listening_addresses(server.process.pid) == {"127.0.0.2"}
        assert psutil.Process(server.process.pid).nice() == min(os.nice(0) + 3, 19)


@pytest.mark.parametrize("kind", SERVERS)
async def test_second_server_on_a_directory_is_refused(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    async with kind(tmp_path):
        with pytest.raises(ServerStartError, match="in use by another process"):
            await kind(tmp_path).start()
    async with kind(tmp_path) as again:
        assert again.process.is_running


@pytest.mark.parametrize("kind", SERVERS)
async def test_taken_port_is_a_clear_error(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match=rf"port {port} is in use(.|\n)*[Aa]ddress already in use"):
            await kind(tmp_path, port=port).start()


@pytest.mark.parametrize("kind", SERVERS)
async def test_failed_start_shows_the_servers_last_words(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    (tmp_path / "jetstream").write_text("not a directory")
    (tmp_path / "appendonlydir").write_text("not a directory")
    server = kind(tmp_path)
    with pytest.raises(ServerStartError, match=r"did not start: exit status 1(.|\n)*not a directory|appendonlydir"):
        await server.start()
    assert not server.process.is_running


@pytest.mark.parametrize("kind", SERVERS)
async def test_hung_start_ends_at_the_timeout(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    server = kind(tmp_path, start_timeout_s=0.0)
    with pytest.raises(ServerStartError, match="not ready after 0 s"):
        await server.start()
    assert not server.process.is_running


async def test_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    starting = asyncio.ensure_future(server.start())
    await eventually((tmp_path / "nats-server.log").exists)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not server.process.is_running


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_without_a_server_on_the_path_the_wheels_binary_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server().name == "valkey-server"
    async with EmbeddedRedis(tmp_path / "redis") as server, redis.asyncio.Redis.from_url(server.url) as client:
        assert await client.ping()


def test_what_is_on_the_path_serves_only_where_there_is_no_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redis-server").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server().name == "valkey-server"

    def no_wheel(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", no_wheel)
    assert find_redis_server() == tmp_path / "redis-server"


PARENT = textwrap.dedent("""
    import asyncio, json, sys
    from pathlib import Path
    from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis

    async def main():
        root = Path(sys.argv[1])
        async with EmbeddedNats(root / "nats") as nats, EmbeddedRedis(root / "redis") as redis:
            print(json.dumps([nats.process.pid, redis.process.pid]), flush=True)
            await asyncio.sleep(1000)

    asyncio.run(main())
""")


def test_servers_die_with_a_killed_parent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        sessions = {os.getsid(pid) for pid in (parent.pid, *pids)}
        assert len(sessions) == 3, "a terminal's Ctrl-C would reach the servers"
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
