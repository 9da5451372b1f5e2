"""What a host has too little of is said, with what to do: decided purely, looked at for real."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from broker_pipeline.process.host_room import SHM, Found, Needs, RoomNeed, look, shortages
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.local.preflight import needs_of
from gateway.settings import GatewaySettings, Limits
from stages.worker.settings import StageSettings
from tests.kit.running.small_disk import needs_mounting, small_disk

MIB = 2**20
ROOM = RoomNeed(Path("/data"), 64 * MIB, 100, "tokens", "free some")
NEEDS = Needs(1000, (ROOM,))


@pytest.mark.parametrize(
    ("num_files", "free", "said"),
    [
        (1000, (64 * MIB, 100), []),
        (1000, (64 * MIB, None), []),
        (1000, None, []),
        (999, (64 * MIB, 100), ["999 files may be open and 1000 are needed"]),
        (1000, (MIB, 100), ["/data has 1.0 MiB free and 64.0 MiB are needed for tokens: free some"]),
        (1000, (64 * MIB, 99), ["/data has 99 inodes free and 100 are needed for tokens: free some"]),
        (1, (0, 0), ["files may be open", "0.0 MiB free", "0 inodes free"]),
    ],
)
def test_each_shortage_is_said_once(num_files: int, free: tuple[int, int | None] | None, said: list[str]) -> None:
    found = shortages(NEEDS, Found(num_files, {ROOM.path: free}))
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


def test_what_is_needed_follows_from_settings(tmp_path: Path) -> None:
    few, many = (GatewaySettings(limits=Limits(max_streams=number)).needs.num_files for number in (10, 5000))
    assert many - few == 4990
    stage = StageSettings(model="m", blocks="0:1")
    assert stage.needs.rooms == (SHM,)
    alone = StageSettings(model="m", blocks="0:1", edges="nats").needs
    assert (alone.rooms, alone.num_files < stage.needs.num_files) == ((), True)
    local = LocalSettings(model=tmp_path, stages=(), data_dir=tmp_path / "data")
    assert {room.path.name for room in needs_of(local).rooms} == {"nats", "redis"}
    served = LocalSettings(model=tmp_path, stages=(), data_dir=tmp_path, nats_url="nats://a", redis_url="redis://b")
    assert needs_of(served).rooms == ()


@needs_mounting
def test_a_small_disk_is_found_where_a_directory_will_be(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m"):
        needs = Needs(1, (RoomNeed(tmp_path / "disk" / "a" / "b", 2 * MIB, 10**9, "tokens", "free some"),))
        said = shortages(needs, look(needs))
    assert ["MiB free" in said[0], "inodes free" in said[1]] == [True, True]


def test_a_service_raises_its_own_limit_and_says_what_is_still_missing(tmp_path: Path) -> None:
    """With a hard limit that is too low; a soft one alone is raised without a word."""
    program = """
import asyncio, sys
from broker_pipeline.config import CommonSettings
from broker_pipeline.process.host_room import Needs
from broker_pipeline.service import run_and_exit
import resource
async def main(context):
    print("soft", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
run_and_exit("probe", main, CommonSettings(log_format="json"), Needs(num_files=int(sys.argv[1])))
"""

    def said(num_needed: int) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", program, str(num_needed)],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300)),
        )
        return done.stdout, done.stderr

    out, log = said(300)
    assert (out, "host_has_too_little" in log) == ("soft 300\n", False)
    out, log = said(301)
    assert out == "soft 300\n"
    assert log.count("host_has_too_little") == 1
    assert "ulimit -n" in log


def test_this_host_is_looked_at_for_real() -> None:
    found = look(Needs(1, (SHM,)))
    assert found.num_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert (found.free[SHM.path] is not None) == os.path.exists(SHM.path)  # noqa: PTH110 - either of them
