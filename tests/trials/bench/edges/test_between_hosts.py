"""`bench edges` between two hosts, which are network namespaces, as a person would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline.tools.local.server_binaries import find_nats_server
from tests.kit.running.netlab import LinkShape, Netlab, is_possible, netlab

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(not is_possible(), reason="network namespaces need root and /dev/net/tun"),
]

SHAPE = LinkShape(rate_mbit=200, delay_s=0.001)
"""Slow enough for two busy cores, which have to be the wire as well."""
PROGRAM = str(Path(sys.executable).with_name("broker-pipeline"))
LARGE_KIB = 3072


@contextmanager
def running(command: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(directory: Path) -> list[dict[str, Any]]:
    server = [str(find_nats_server()), "-a", "0.0.0.0", "-p", "4222"]
    sizes = ["--kib", str(LARGE_KIB), "--beside", str(LARGE_KIB), "--trips", "60"]
    report = ["--elsewhere", "--way", "raw TCP", "--way", "tcp", "--json", str(directory / "edges.json")]
    with netlab(2, SHAPE) as lab, running(lab.inside(0, server)), running(bench(lab, 1, "--answer")):
        subprocess.run(bench(lab, 2, *report, *sizes), check=True, timeout=90)
    return list(json.loads((directory / "edges.json").read_bytes())["rows"])


def bench(lab: Netlab, host: int, *options: str) -> list[str]:
    return lab.inside(host, [PROGRAM, "bench", "edges", "--nats-url", f"nats://10.78.{host}.1:4222", *options])


def test_an_edge_keeps_nine_tenths_of_what_sockets_get_and_no_decode_step_waits_behind_a_prompt(tmp_path: Path) -> None:
    """All of one measurement, which a repetition of the test makes anew.

    What the wire allows is what bare sockets got in the same minute: a busy machine's wire stalls, and drops packets.
    """
    alone, beside = (row for row in measured(tmp_path) if row["way"] == "tcp")
    assert alone["of_raw_tcp"] > 0.9
    assert alone["bytes_per_s"] > 0.6 * SHAPE.goodput
    assert beside["bytes_per_s"] > 0.6 * SHAPE.goodput, "the wire was full meanwhile"
    assert beside["p50_s"] < SHAPE.seconds_of(LARGE_KIB * 1024) / 3
