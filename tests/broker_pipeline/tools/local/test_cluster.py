"""The launcher with every real part, as a program and as a library. Slow: each test starts six processes or more."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.errors import ConfigurationError, ServerStartError
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.tools.demo.pictures import photographs
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.command import command
from broker_pipeline.tools.local.cuts import parse_cut
from broker_pipeline.tools.local.plan import LocalSettings
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.waiting import eventually, wait_until

pytestmark = pytest.mark.slow

START_S = 60.0
UP = (sys.executable, "-m", "broker_pipeline", "up")


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Return live processes that were told about a data directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            # Redis writes over its command line, but works inside its directory.
            if any(str(data_dir) in word for word in [*process.cmdline(), process.cwd()]):
                found.append(process)
    return found


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


class Up:
    """`broker-pipeline up` as a person runs it, its output in a file."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.output_path = data_dir.parent / "up.out"
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                [*UP, "--model", str(tiny_artifact()), "--port", "0", "--data-dir", str(data_dir), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    def until(self, pattern: str, timeout_s: float = START_S) -> re.Match[str]:
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.output)) is None:
            assert time.monotonic() < deadline, f"no {pattern} in:\n{self.output}"
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
            time.sleep(0.05)
        return found

    def ready_url(self) -> str:
        return self.until(r"ready: (http://\S+)")[1]

    def wait(self, timeout_s: float = START_S) -> int:
        return self.process.wait(timeout_s)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state"
    yield directory
    left = processes_of(directory)
    for process in left:
        process.kill()
    assert left == []


def test_a_directory_has_one_up_and_ctrl_c_stops_it_in_order_and_leaves_nothing(data_dir: Path) -> None:
    up = Up(data_dir, "--stages", "2", "--vision-workers", "2")
    url = up.ready_url()
    workers = {worker["worker"] for worker in fetch(f"{url}/v1/status")["workers"]}
    assert {"stage-0", "stage-1", "vision-0", "vision-1"} <= workers

    second = subprocess.run(up.process.args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert second.returncode == 69
    assert "in use by another process" in second.stdout

    os.killpg(up.process.pid, signal.SIGINT)  # what a terminal does: to the whole process group
    assert up.wait() == 0
    assert processes_of(data_dir) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    order = re.findall(r"(\S+) stopping", up.output)
    assert order[0] == "gateway-0"
    assert order[1] == "conductor-0"
    assert order[-2:] == ["redis", "nats"]
    assert "killed" not in up.output
    assert "Traceback" not in up.output


def test_sigkill_of_the_launcher_leaves_no_child(data_dir: Path) -> None:
    up = Up(data_dir, "--stages", "1")
    up.ready_url()
    assert len(processes_of(data_dir)) >= 3
    up.process.kill()
    up.wait()
    wait_until(lambda: not processes_of(data_dir))


def test_ctrl_c_during_the_start_ends_cleanly(data_dir: Path) -> None:
    up = Up(data_dir, "--stages", "2")
    up.until("stage-1 starting")
    up.process.send_signal(signal.SIGINT)
    assert up.wait() == 0
    assert "Traceback" not in up.output


def test_a_second_ctrl_c_kills(data_dir: Path) -> None:
    up = Up(data_dir, "--stages", "1", "--drain-s", "1000")
    up.ready_url()
    stage = next(process for process in processes_of(data_dir) if "stage-0" in process.cmdline())
    stage.send_signal(signal.SIGSTOP)  # it cannot end by itself
    up.process.send_signal(signal.SIGTERM)
    up.until("stage-0 stopping")
    up.process.send_signal(signal.SIGTERM)
    assert up.wait() == 130, "it did not wait for the stage"


def refusal(data_dir: Path, *arguments: str) -> str:
    """Return in what sentence `up` refuses its settings, in this process since it starts none."""
    words = ["--model", str(tiny_artifact()), "--port", "0", "--stages", "1", "--data-dir", str(data_dir)]
    result = CliRunner().invoke(command, [*words, *arguments])
    assert isinstance(result.exception, ConfigurationError), result.output
    assert result.output == ""
    return result.exception.message


def test_a_taken_port_is_said_before_anything_starts(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(data_dir, "--port", str(port))
    why = f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert said == f"{why}; choose another --port, or 0 for a free one"
    assert not data_dir.exists()


def test_a_host_that_is_not_ours_is_said_before_anything_starts(data_dir: Path) -> None:
    said = refusal(data_dir, "--host", "192.0.2.1")
    assert "cannot listen on 192.0.2.1:0: Cannot assign requested address" in said
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/state", "Not a directory"),
        ("/proc/state", "No such file or directory"),
        ("used", "File exists"),
        (os.fsdecode(b"caf\xe9"), "the path is not UTF-8"),
    ],
)
def test_directories_that_cannot_be_made_are_said_in_one_line(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "redis").touch()
    said = refusal(tmp_path / place)
    assert said.startswith("--data-dir")
    assert reason in said
    assert "\n" not in said


def test_a_part_tells_how_up_ends(data_dir: Path, tmp_path: Path) -> None:
    """A host without a stage's weights: the artifact is incomplete, which only the stage notices."""
    model = shutil.copytree(tiny_artifact(), tmp_path / "model")
    (model / "block-00002.safetensors").unlink()
    up = Up(data_dir, "--stages", "1", "--model", str(model))
    assert up.wait(START_S) == 78
    assert "stage-0 did not start: exit status 78" in up.output
    assert "Traceback" not in up.output


def test_no_artifact_and_no_broker_have_their_codes(data_dir: Path, tmp_path: Path) -> None:
    assert Up(data_dir, "--model", str(tmp_path)).wait(START_S) == 78
    assert Up(data_dir, "--stages", "1", "--nats-url", "nats://127.0.0.1:1").wait(START_S) == 69


def test_nobody_has_to_read_what_up_prints(data_dir: Path) -> None:
    """Its terminal, or the program behind a pipe, goes away; parts still come back, and it still stops in order."""
    argv = [*UP, "--model", str(tiny_artifact()), "--port", "0", "--data-dir", str(data_dir), "--stages", "1"]
    up = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert up.stdout is not None
    url = next(found[1] for line in up.stdout if (found := re.search(r"ready: (http://\S+)", line)))
    up.stdout.close()
    stage = next(process for process in processes_of(data_dir) if "stage-0" in process.cmdline())
    stage.kill()
    wait_until(lambda: not stage.is_running() and _is_ready(url), timeout_s=START_S)
    up.send_signal(signal.SIGHUP)
    assert up.wait(START_S) == 0


async def test_killed_parts_come_back_by_themselves(data_dir: Path) -> None:
    settings = LocalSettings(model=tiny_artifact(), stages=parse_cut("1,3", 6), data_dir=data_dir, drain_s=5)
    async with LocalCluster(settings) as cluster:
        url = cluster.gateway_url
        for names in (("stage-1", "conductor-0", "vision-0"), ("redis", "nats", "gateway-0")):
            programs = [cluster.processes[name] for name in names]
            before = [program.pid for program in programs]
            for program in programs:
                program.kill()
            for program in programs:
                await eventually(lambda program=program: program.num_restarts == 1, timeout_s=START_S)  # type: ignore[misc]
                await program.wait_ready(START_S)
            assert not {program.pid for program in programs} & {*before}
        assert cluster.gateway_url == url
        await eventually(lambda: _is_ready(url), timeout_s=40)


async def test_without_restarts_a_test_decides_when_a_part_comes_back_and_a_job_outlasts_the_drain(
    data_dir: Path,
) -> None:
    """The conductor drains for as long as it may; the stage, which still has the session, is then cut short."""
    settings = LocalSettings(
        model=tiny_artifact(), stages=parse_cut("", 6), data_dir=data_dir, drain_s=4, restarts=False
    )
    content = await asyncio.to_thread(photographs()[0].path.read_bytes)
    request = CaptionRequest(sampling=SamplingParams(max_tokens=2000, ignore_eos=True, n=100))
    async with LocalCluster(settings) as cluster, GatewayClient.open(cluster.gateway_url) as client:
        stage = cluster.processes["stage-0"]
        stage.kill()
        await eventually(lambda: stage.state == "dead")
        await stage.restart()
        await eventually(lambda: _is_ready(cluster.gateway_url), timeout_s=40)
        assert stage.log_path.read_text().count("service_ready") == 2
        submitted = await client.submit(content, request, key="long")
        await asyncio.to_thread(_read_first_token, cluster.gateway_url, submitted.record.job_id)
    logs = {name: (data_dir / "logs" / f"{name}.log").read_text() for name in ("conductor-0", "stage-0")}
    assert "requeued" in logs["conductor-0"]
    assert "drain_deadline_passed" not in logs["stage-0"]
    assert "service_cut_short" in logs["stage-0"]


def _read_first_token(gateway_url: str, job_id: str) -> None:
    """Wait until a stage computes a job: what none computes yet is handed back at once."""
    with urllib.request.urlopen(f"{gateway_url}/v1/jobs/{job_id}/events", timeout=20) as events:
        next(line for line in events if line.startswith(b"event: tokens"))


async def test_a_part_that_cannot_start_says_why(data_dir: Path) -> None:
    settings = LocalSettings(
        model=tiny_artifact(),
        stages=parse_cut("", 6),
        data_dir=data_dir,
        extra_arguments={"stage": ("--no-such-flag", "1")},
    )
    with pytest.raises(ServerStartError, match=r"stage-\d did not start: exit status 2(.|\n)*no-such-flag"):
        async with LocalCluster(settings):
            pass


def _is_ready(url: str) -> bool:
    try:
        return bool(fetch(f"{url}/readyz")["ready"])
    except OSError:
        return False


async def test_jobs_that_were_not_run_are_taken_up_at_the_next_start(data_dir: Path) -> None:
    settings = LocalSettings(
        model=tiny_artifact(), stages=parse_cut("", 6), data_dir=data_dir, drain_s=0.5, restarts=False
    )
    content = await asyncio.to_thread(photographs()[0].path.read_bytes)
    request = CaptionRequest(sampling=SamplingParams(max_tokens=4))
    async with LocalCluster(settings) as cluster, GatewayClient.open(cluster.gateway_url) as client:
        cluster.processes["stage-0"].kill()
        submitted = [await client.submit(content, request, key=f"key-{number}") for number in range(3)]
        assert (await client.job(submitted[0].record.job_id)).status in {"queued", "running"}
    async with LocalCluster(settings) as cluster, GatewayClient.open(cluster.gateway_url) as client:
        async with asyncio.timeout(START_S):
            records = [await client.wait(job.record.job_id) for job in submitted]
    assert [record.status for record in records] == ["succeeded"] * 3
    assert {record.result.usage.num_output_tokens for record in records if record.result} == {4}
