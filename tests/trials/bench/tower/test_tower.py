from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from trials.bench.tower.command import command


def test_the_command_times_batches_of_several_sizes(tmp_path: Path) -> None:
    path = tmp_path / "tower.json"
    arguments = ["--shape", "tiny", "--pictures", "1", "--pictures", "3", "--side", "64", "--side", "128"]
    result = CliRunner().invoke(command, [*arguments, "--steps", "2", "--warm-up", "1", "--json", str(path)])
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())["rows"]
    assert [(row["way"], row["num_pictures"], row["num_patches"]) for row in rows] == [
        ("launched", 1, 16),
        ("launched", 3, 16 + 64 + 16),
    ]
    assert all(0 < row["launch_s"]["median"] <= row["step_s"]["median"] for row in rows)
    assert all(row["in_turn_s"] > 0 for row in rows)
