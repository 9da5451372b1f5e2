from pathlib import Path

import pytest
from click.testing import CliRunner

from broker_pipeline.conductor.command import command


def test_help_teaches() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    for words in ("standby", "--heartbeat-timeout-s", "SIGTERM", "BROKER_PIPELINE_MAX_SESSIONS"):
        assert words in result.output


def test_a_directory_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--model", str(tmp_path), "--log-format", "json"])
    assert result.exit_code == 78
    assert "is not an artifact" in result.output


@pytest.mark.parametrize("flags", [["--max-sessions", "0"], ["--deadline-s", "0"], ["--dtype", "int8"], []])
def test_wrong_flags_are_usage_errors(tmp_path: Path, flags: list[str]) -> None:
    model = ["--model", str(tmp_path)] if flags else []
    assert CliRunner().invoke(command, [*model, *flags]).exit_code == 2
