"""What a process writes, on disk: real threads, real kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.trace.reading import read_trace
from broker_pipeline.tracing.activities import PLAN, QUEUE, STEP
from broker_pipeline.tracing.trace_file import TraceFile
from broker_pipeline.tracing.tracer import Tracer


def events(path: Path) -> list[dict[str, Any]]:
    whole = json.loads(path.read_bytes())
    return list(whole["traceEvents"])


def test_spans_are_slices_of_the_wall_clock_on_the_row_of_their_thread(tmp_path: Path) -> None:
    tracer = Tracer()
    path = tracer.start(tmp_path / "new", "stage", max_events=100)
    tracer.name_process("stage-3")
    before = time.time()
    with tracer.measure(PLAN, epoch=1, microbatch=2):
        time.sleep(0.02)
    thread = threading.Thread(target=tracer.measured(STEP, time.sleep, microbatch=2), args=(0.01,), name="compute")
    thread.start()
    thread.join()
    tracer.stop()
    rows = {event["tid"]: event["args"]["name"] for event in events(path) if event["name"] == "thread_name"}
    plan, step = (event for event in events(path) if event["ph"] == "X")
    assert before <= plan["ts"] / 1e6 <= time.time()
    assert plan["dur"] >= 20_000
    assert (plan["name"], plan["cat"], plan["args"]) == ("plan", "host", {"epoch": 1, "microbatch": 2})
    assert (rows[plan["tid"]], rows[step["tid"]]) == ("event loop", "compute")
    assert {"name": "stage-3"} in [event["args"] for event in events(path) if event["name"] == "process_name"]


def test_what_overlaps_is_written_as_asynchronous_slices(tmp_path: Path) -> None:
    tracer = Tracer()
    path = tracer.start(tmp_path, "stage", max_events=100)
    tracer.span(QUEUE, 1_000, 9_000, microbatch=1)
    tracer.span(QUEUE, 2_000, 8_000, microbatch=2)
    tracer.stop()
    begins = {event["id"]: event for event in events(path) if event["ph"] == "b"}
    ends = {event["id"]: event for event in events(path) if event["ph"] == "e"}
    assert len(begins) == 2
    assert begins.keys() == ends.keys()
    assert [(span.stop - span.start, span.facts["microbatch"]) for span in read_trace(path).spans] == [
        (8_000, 1),
        (6_000, 2),
    ]


def test_nothing_is_recorded_while_it_is_off(tmp_path: Path) -> None:
    tracer = Tracer()

    def double(number: int) -> int:
        return 2 * number

    assert tracer.measured(PLAN, double) is double
    with tracer.measure(PLAN):
        tracer.span(PLAN, tracer.now())
    tracer.stop()
    path = tracer.start(tmp_path, "stage", max_events=100)
    tracer.stop()
    assert read_trace(path).spans == []


def test_a_profile_ends_at_its_limit_and_says_so_once(tmp_path: Path) -> None:
    tracer = Tracer()
    with capture_logs() as said:
        path = tracer.start(tmp_path, "stage", max_events=10)
        for _ in range(50):
            tracer.span(PLAN, tracer.now())
        assert not tracer.is_on
        tracer.stop()
    assert len(read_trace(path).spans) == 10
    assert [line["event"] for line in said].count("profile_full") == 1


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    tracer = Tracer()
    path = tracer.start(tmp_path, "stage", max_events=100_000)

    def record(thread: int) -> None:
        for number in range(2_000):
            tracer.span(PLAN, tracer.now(), thread=thread, number=number)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracer.stop()
    seen = {(span.facts["thread"], span.facts["number"]) for span in read_trace(path).spans}
    assert seen == {(thread, number) for thread in range(4) for number in range(2_000)}


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file") as raised:
        Tracer().start(tmp_path / "file", "stage", max_events=10)
    assert raised.value.field == "profile"


def test_the_file_is_whole_after_every_write(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "trace.json", b'{"ph":"M"}')
    assert len(events(tmp_path / "trace.json")) == 1
    for number in range(1, 5):
        file.append([b'{"ph":"X"}'] * 5_000)
        assert len(events(tmp_path / "trace.json")) == 1 + number * 5_000
    file.close()


_RECORD_FOREVER = """
import sys, time
from pathlib import Path
from broker_pipeline.tracing.activities import PLAN
from broker_pipeline.tracing.tracer import tracer
print(tracer.start(Path(sys.argv[1]), "stage", max_events=10**9), flush=True)
while True:
    for _ in range(200):
        tracer.span(PLAN, tracer.now(), note="x" * 100)
    time.sleep(0.001)
"""


def test_a_killed_process_leaves_a_readable_trace(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _RECORD_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        [path] = _until(lambda: list(tmp_path.glob("*.json")))
        _until(lambda: path.stat().st_size > 2**20)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert len(events(path)) > 1_000
    assert len(read_trace(path).spans) > 1_000


def test_a_trace_that_is_cut_anywhere_can_be_read(tmp_path: Path) -> None:
    tracer = Tracer()
    path = tracer.start(tmp_path, "stage", max_events=100)
    for number in range(20):
        tracer.span(PLAN, number, number + 1, number=number)
    tracer.stop()
    content = path.read_bytes()
    found = set()
    for length in range(content.index(b'"X"'), len(content), 7):
        path.write_bytes(content[:length])
        numbers = [span.facts["number"] for span in read_trace(path).spans]
        assert numbers == list(range(len(numbers)))
        found.add(len(numbers))
    assert found == set(range(21))


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"traceEvents":[\n{"ph":"X","name":"a","pid":1}\n]}\n'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"other\.json"):
        read_trace(tmp_path / "other.json")


def _until(look: Any) -> Any:
    deadline = time.monotonic() + 20
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
