"""Lifecycle of a service: a real process, real signals."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BODY = """
import asyncio
from broker_pipeline import service
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import TransportError, WorkerNameTakenError

async def main(context):
    {body}

service.run_and_exit("probe", main, CommonSettings(drain_s={drain_s}, ready_file={ready!r}, log_format="json"))
"""


@contextmanager
def running(tmp_path: Path, body: str, *, drain_s: float = 5) -> Iterator[subprocess.Popen[str]]:
    ready = tmp_path / "ready"
    script = tmp_path / "probe.py"
    script.write_text(
        BODY.format(body=textwrap.indent(textwrap.dedent(body), "    ").strip(), drain_s=drain_s, ready=str(ready))
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 50
        while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


def iter_until(lines: Iterable[str], end: str) -> Iterator[str]:
    """Yield lines up to the first that holds `end`."""
    for line in lines:
        yield line
        if end in line:
            return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_and_exits_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    body = """
    context.ready(port=1)
    await context.stopping.wait()
    await asyncio.sleep(0.2)
    print("drained", file=__import__("sys").stderr)
    """
    with running(tmp_path, body) as process:
        assert (tmp_path / "ready").read_text() == "port=1\n"
        process.send_signal(number)
        _, log = process.communicate(timeout=50)
        assert process.returncode == 0
        assert "drained" in log
        assert "service_stopped" in log


def test_the_deadline_cancels_what_does_not_drain(tmp_path: Path) -> None:
    body = """
    context.ready()
    await context.stopping.wait()
    await asyncio.sleep(1000)
    """
    with running(tmp_path, body, drain_s=0.3) as process:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=50)
        assert process.returncode == 0
        assert "drain_deadline_passed" in log


def test_a_second_signal_leaves_what_is_cut_short_its_time_to_tidy_up(tmp_path: Path) -> None:
    """As when `up` finds its own deadline, and the service's own, within a moment."""
    body = """
    context.ready()
    try:
        await asyncio.sleep(60)
    finally:
        print("tidying", file=__import__("sys").stderr, flush=True)
        await asyncio.sleep(0.5)
        print("tidied", file=__import__("sys").stderr)
    """
    with running(tmp_path, body, drain_s=0.1) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        log = "".join(iter_until(process.stderr, "tidying"))
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=50)
        assert "drain_deadline_passed" in log
        assert "tidied" in rest


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    body = """
    context.ready()
    await asyncio.sleep(1000)
    """
    with running(tmp_path, body, drain_s=1000) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=50)
        assert process.returncode == 130


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("context.ready(); raise TransportError('gone')", 69),
        ("raise WorkerNameTakenError('taken')", 75),
        ("context.ready(); raise ExceptionGroup('group', [ValueError('bug'), TransportError('gone')])", 69),
        ("raise ValueError('bug')", 70),
    ],
)
def test_an_error_decides_the_exit_code(tmp_path: Path, body: str, code: int) -> None:
    with running(tmp_path, body) as process:
        process.communicate(timeout=50)
        assert process.returncode == code


def test_servers_that_come_up_late_are_waited_for(tmp_path: Path) -> None:
    body = f"""
    from pathlib import Path
    tries = Path({str(tmp_path / "tries")!r})
    tries.write_text(tries.read_text() + "." if tries.exists() else ".")
    if len(tries.read_text()) < 3:
        raise ExceptionGroup("group", [TransportError("not yet")])
    context.ready()
    """
    with running(tmp_path, body) as process:
        _, log = process.communicate(timeout=50)
        assert process.returncode == 0
        assert log.count("start_repeated") == 2
        assert "not yet" in log


def test_servers_that_stay_away_end_the_start(tmp_path: Path) -> None:
    with running(tmp_path, "raise TransportError('gone')") as process:
        _, log = process.communicate(timeout=50)
        assert process.returncode == 69
        assert log.count("start_repeated") > 2
        assert "service_failed" in log


def test_a_signal_ends_the_wait_for_servers(tmp_path: Path) -> None:
    body = """
    (__import__("pathlib").Path(context.settings.ready_file)).touch()
    raise TransportError("not yet")
    """
    with running(tmp_path, body) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=50)
        assert process.returncode == 0
