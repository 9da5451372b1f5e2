"""Real namespaces: reach, cut, mend, and what is left when the process is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_pipeline.errors import ConfigurationError
from tests.kit.waiting import eventually
from trials.soak.faults.network import PREFIX, Network, NetworkError, sweep, why_no_network

needs_network = pytest.mark.skipif(why_no_network() is not None, reason=str(why_no_network()))

_ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(10):
            self.request.sendall(data)
socketserver.ThreadingTCPServer(("0.0.0.0", 4000), Echo).serve_forever()
"""


def namespaces() -> set[str]:
    said = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in said.splitlines() if line.startswith(PREFIX)}


@pytest.fixture
def echo() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start_echo(network: Network, component: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*network.place(component).prefix, sys.executable, "-c", _ECHO])


def own_namespace() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    def is_listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((address, 4000)) == 0

    await eventually(is_listening)
    return await asyncio.open_connection(address, 4000)


@needs_network
async def test_a_component_that_is_cut_off_hangs_without_a_word_and_goes_on_when_mended(
    echo: list[subprocess.Popen[bytes]],
) -> None:
    home = own_namespace()
    async with Network(["a", "b"]) as network:
        assert own_namespace() != home
        echo += [start_echo(network, component) for component in ("a", "b")]
        (reader, writer), (other_reader, other_writer) = [
            await connect(network.place(name).host) for name in ("a", "b")
        ]
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"

        await network.cut("a")
        writer.write(b"2")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 1.0)
        assert not reader.at_eof()
        other_writer.write(b"3")
        assert await asyncio.wait_for(other_reader.readexactly(1), 20) == b"3"

        await network.mend("a")
        assert await asyncio.wait_for(reader.readexactly(1), 60) == b"2"
        writer.close()
        other_writer.close()
    assert own_namespace() == home
    assert not {name for name in namespaces() if str(os.getpid()) in name}


@needs_network
async def test_the_pid_of_a_command_within_is_its_own(echo: list[subprocess.Popen[bytes]]) -> None:
    async with Network(["a"]) as network:
        echo.append(start_echo(network, "a"))
        command_line = Path(f"/proc/{echo[0].pid}/cmdline")
        await eventually(lambda: b"python" in command_line.read_bytes())


@needs_network
def test_what_a_killed_process_leaves_is_swept() -> None:
    script = (
        "import asyncio\n"
        "from trials.soak.faults.network import Network\n"
        "async def main():\n"
        "    async with Network(['a', 'b']):\n"
        "        print('open', flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        left = {f"{PREFIX}-{process.pid}-{component}" for component in ("a", "b")}
        assert left <= namespaces()
        assert left.isdisjoint(asyncio.run(sweep())), "a living process lost its namespaces"
        process.send_signal(signal.SIGKILL)
    assert left <= set(asyncio.run(sweep()))
    assert left.isdisjoint(namespaces())


@needs_network
async def test_a_refusal_of_the_kernel_is_said() -> None:
    network = Network(["a"])
    with pytest.raises(NetworkError, match="ip link set veth2 down: Cannot find device"):
        await network.cut("a")


async def test_without_root_a_network_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigurationError, match=r"need root.*--faults kill,stop,restart"):
        async with Network(["a"]):
            pass


def test_without_the_tool_a_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    assert why_no_network() == "there is no `ip` here; install iproute2"
