import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from trials.bench.command import command
from trials.bench.hop.raw_comparison import bench_envelope, measure_hop
from trials.bench.hop.step_messages import measure_decode


@pytest.mark.parametrize("num_segments", [1, 32])
async def test_a_hop_is_timed_alongside_a_raw_one(nats_url: str, num_segments: int) -> None:
    row = await measure_hop(nats_url, 8192, num_segments, num_trips=20)
    assert row.num_bytes > 8192
    assert row.raw_s.num_samples == row.transport_s.num_samples == 20
    assert 0 < row.raw_s.p10 <= row.raw_s.median <= row.raw_s.p90
    assert row.excess_s == pytest.approx((row.ratio - 1) * row.raw_s.median)


async def test_the_messages_of_a_decode_step_are_timed(nats_url: str) -> None:
    envelope, result = await measure_decode(nats_url, 40, num_trips=20)
    assert (envelope.message, result.message) == ("envelope", "result")
    for row in (envelope, result):
        assert row.num_segments == 40
        assert row.num_bytes > 40 * 50
        assert row.transport_s.num_samples == 20
        assert 0 < row.encode_s.median < row.cpu_s
        assert 0 < row.decode_s.median < row.transport_s.median


@pytest.mark.parametrize(("num_bytes", "num_segments"), [(8192, 1), (8192, 32), (2**18, 7)])
def test_the_envelope_has_about_the_bytes_that_were_asked_for(num_bytes: int, num_segments: int) -> None:
    envelope, tensors = bench_envelope(num_bytes, num_segments)
    assert len(envelope.segments) == num_segments
    assert sum(tensor.data.nbytes for tensor in tensors.values()) == pytest.approx(num_bytes, rel=0.01)


def test_the_command_writes_what_it_shows(nats_url: str, tmp_path: Path) -> None:
    report_path = tmp_path / "new" / "hop.json"
    arguments = shlex.split("hop --kib 8 --segments 1 --envelope 7 --trips 20")
    arguments += ["--nats-url", nats_url, "--json", str(report_path)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(report_path.read_text())
    assert report["bench"] == "hop"
    assert report["machine"]["num_cores"] >= 1
    assert [row["num_segments"] for row in report["rows"]] == [1]
    assert [row["num_segments"] for row in report["decode_rows"]] == [7, 7]
    assert "8 KiB" in result.output
    assert "messages of one decode step" in result.output
