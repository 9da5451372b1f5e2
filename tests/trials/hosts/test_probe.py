"""`probe` as a person runs it: a host that listens, one that measures, and a plan made of what it wrote."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker_pipeline.errors import TransportError
from trials.hosts.described import read_hosts
from trials.hosts.link_probe import listening, measure_link
from trials.hosts.plan_command import command as plan
from trials.hosts.probe_command import command
from trials.hosts.probe_file import read_probe

PROGRAM = str(Path(sys.executable).with_name("broker-pipeline"))


@pytest.fixture
def peer() -> Iterator[str]:
    """Yield what `--listen` tells others to type."""
    argv = [PROGRAM, "probe", "--listen", "127.0.0.1", "--port", "0", "--name", "gpu-2"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = re.search(r"--peer (gpu-2=nats://\S+@127\.0\.0\.1:\d+)$", process.stdout.readline().strip())
        assert said
        yield said[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_a_host_is_measured_and_planned_with(peer: str, tmp_path: Path) -> None:
    out, options = tmp_path / "gpu-1.json", ["--shape", "tiny", "--device", "cpu", "--picture-side", "64"]
    done = CliRunner().invoke(command, ["--name", "gpu-1", "--peer", peer, "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    probe = read_probe(out)
    [device], [link] = probe.devices, probe.links
    assert (probe.host, link.peer, device.device) == ("gpu-1", "gpu-2", "cpu")
    assert 0 < device.free_bytes <= device.total_bytes
    assert [step.num_sessions for step in device.decode] == [1, 16]
    assert min(link.nats_bytes_per_s, link.edge_bytes_per_s) > 1e6
    assert "gpu-2" in done.output
    hosts = tmp_path / "hosts.toml"
    hosts.write_text('[[hosts]]\nname = "gpu-1"\naddress = "10.0.0.1"\nprobe = "gpu-1.json"\n')
    assert not read_hosts(hosts).fleet.devices[0][0].is_estimated
    said = CliRunner().invoke(plan, ["--hosts", str(hosts), "--model", "tiny"])
    assert said.exit_code == 0, said.output
    assert "tiny" in said.output
    assert "estimated" not in said.output


async def test_who_has_no_token_is_not_answered() -> None:
    async with listening("127.0.0.1", 0) as url:
        link = await measure_link("b", url)
        assert link.edge_trip_s > 0
        for token in ("", "wrong@"):
            with pytest.raises(TransportError, match="--peer b: "):
                await measure_link("b", re.sub(r"//.*@", f"//{token}", url))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--peer", "gpu-2"], "is not NAME=nats://TOKEN@HOST:PORT"),
        (["--listen", "127.0.0.1", "--out", "a.json"], "leave --peer and --out out"),
        (["--name", "GPU_1"], "hosts' names have letters, digits and hyphens"),
        (["--device", "tpu", "--shape", "tiny"], "unknown device 'tpu'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_timed(options: list[str], said: str) -> None:
    failed = CliRunner().invoke(command, options).exception
    assert said in str(failed)
