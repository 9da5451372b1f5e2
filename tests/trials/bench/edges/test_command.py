import json
from pathlib import Path

from click.testing import CliRunner

from trials.bench.command import command
from trials.bench.edges.ways import WAYS


def test_every_way_is_timed_and_written(nats_url: str, tmp_path: Path) -> None:
    report_path = tmp_path / "edges.json"
    options = ["--nats-url", nats_url, "--kib", "64", "--trips", "20", "--json", str(report_path)]
    result = CliRunner().invoke(command, ["edges", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(report_path.read_bytes())["rows"]
    assert [row["way"] for row in rows] == list(WAYS)
    assert all(0 < row["p50_s"] <= row["p99_s"] and row["bytes_per_s"] > 0 for row in rows)
    assert [row["of_raw_tcp"] for row in rows if row["way"] == "raw TCP"] == [1.0]
