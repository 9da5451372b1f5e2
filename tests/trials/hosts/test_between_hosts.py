"""`probe` between two hosts, which are network namespaces."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.running.netlab import LinkShape, is_possible, netlab
from trials.hosts.link_probe import measure_link
from trials.hosts.probe_file import ProbedLink

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(not is_possible(), reason="network namespaces need root and /dev/net/tun"),
]

SHAPE = LinkShape(rate_mbit=100, delay_s=0.005)
"""Slow enough for two busy cores, which have to be the wire as well."""
PROGRAM = str(Path(sys.executable).with_name("broker-pipeline"))


@pytest.fixture
def link() -> ProbedLink:
    with netlab(1, SHAPE) as lab:
        argv = lab.inside(1, [PROGRAM, "probe", "--listen", "10.78.1.2", "--name", "far"])
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                said = re.search(r"--peer far=(nats://\S+@10\.78\.1\.2:7399)", process.stdout.readline())
                assert said
                with lab.entered(0):
                    return asyncio.run(measure_link("far", said[1]))
            finally:
                process.kill()


def test_a_link_is_what_it_is_made_to_be(link: ProbedLink) -> None:
    for rate in (link.nats_bytes_per_s, link.edge_bytes_per_s):
        assert 0.2 * SHAPE.goodput < rate < 1.02 * SHAPE.goodput, "never more than the wire; less where cores are busy"
    for trip_s in (link.nats_trip_s, link.edge_trip_s):
        assert 2 * SHAPE.delay_s < trip_s < 30 * SHAPE.delay_s
