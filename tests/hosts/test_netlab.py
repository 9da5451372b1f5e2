"""Hosts of the kit leave nothing behind, however their process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.kit.documents import ROOT
from tests.kit.running.netlab import LinkShape, is_possible, netlab

pytestmark = pytest.mark.skipif(not is_possible(), reason="network namespaces need root and /dev/net/tun")


@contextmanager
def running_lab() -> Iterator[subprocess.Popen[bytes]]:
    """Have a host in a process of its own; what runs there ends with the context."""
    argv = [sys.executable, "-m", "tests.kit.running.netlab", "--hosts", "1", "--", "sh", "-c", "echo up; exec cat"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.terminate()


def names_of(process: subprocess.Popen[bytes]) -> list[str]:
    return [path.name for path in Path("/var/run/netns").glob(f"bp{process.pid}-*")]


def test_sigterm_takes_the_hosts_away() -> None:
    with running_lab() as process:
        assert len(names_of(process)) == 2
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        assert names_of(process) == []


def test_the_next_start_takes_away_what_a_killed_one_left_and_nothing_else() -> None:
    with running_lab() as lives, running_lab() as process:
        links = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
        assert links
        process.kill()
        process.wait(timeout=30)
        assert len(names_of(process)) == 2
        psutil.wait_procs(links, timeout=30)
        assert not any(link.is_running() for link in links)
        with netlab(0, LinkShape()):
            assert names_of(process) == []
            assert len(names_of(lives)) == 2
