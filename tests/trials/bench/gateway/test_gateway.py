from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from trials.bench.command import command
from trials.bench.gateway.measurement import row_of
from trials.bench.gateway.own_times import average_times
from trials.bench.gateway.rows import Caption, ClientReport, GatewayBenchSettings


def test_a_row_counts_what_ended_while_it_was_measured_and_adds_up_processes() -> None:
    settings = GatewayBenchSettings(
        num_processes=2,
        num_clients=2,
        num_answerers=1,
        num_in_flight=2,
        rate=None,
        is_streamed=False,
        is_bulk=False,
        num_unread=0,
        picture_side=64,
        seconds=10.0,
    )
    reports = [
        ClientReport(captions=(Caption(99.0, 99.5, 101.0), Caption(101.0, 101.1, 102.0)), refusals={"429": 1}),
        ClientReport(captions=(Caption(98.0, 98.5, 99.0), Caption(109.0, 110.0, 111.0)), refusals={"429": 2}),
    ]
    row = row_of(
        settings, reports, {"gateway 1": 0.0, "gateway 2": 3.0, "gateway 3": 1.0, "nats 4": 2.0}, 5, 100.0, 110.0, {}
    )
    assert (row.num_captions, row.captions_per_s, row.refusals) == (2, 0.2, {"429": 3})
    assert (row.cpu_ms("gateway"), row.cpu_ms("nats")) == (2000.0, 1000.0)
    assert row.gateway_processes_s == (0.0, 3.0, 1.0)
    assert (row.caption_p99_s, row.submission_p99_s) == (2.0, 0.5)


def test_averages_are_of_what_came_between_two_looks() -> None:
    before = {("read", "sum"): 1.0, ("read", "count"): 10.0, ("tell", "sum"): 3.0, ("tell", "count"): 1.0}
    after = before | {("read", "sum"): 2.0, ("read", "count"): 14.0, ("store", "sum"): 6.0, ("store", "count"): 3.0}
    assert average_times(before, after) == {"read": 0.25, "store": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--bulk",), ("--stream", "--unread", "3")])
def test_captions_come_back_through_two_processes(tmp_path: Path, how: tuple[str, ...]) -> None:
    path = tmp_path / "gateway.json"
    arguments = ["gateway", "--processes", "2", "--concurrency", "8", "--seconds", "1", "--picture-side", "64", *how]
    result = CliRunner().invoke(command, [*arguments, "--json", str(path)])
    assert result.exit_code == 0, result.output
    [row] = json.loads(path.read_text())["rows"]
    assert row["num_captions"] > 0
    assert row["refusals"] == {}
    assert len(row["gateway_processes_s"]) == 3
    assert row["gateway_bytes"] > 10_000_000
    assert set(row["own_s"]) == ({"read", "store", "tell"} if "--stream" in how else {"read", "store"})
    assert all(0 < seconds < 10 for seconds in row["own_s"].values())
    assert "captions/s" in result.output
