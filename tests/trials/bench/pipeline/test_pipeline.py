import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker_pipeline.errors import ConfigurationError
from trials.bench.command import command
from trials.bench.pipeline.system_rounds import middle_rate
from trials.bench.work import Work, write_pictures


def run_bench(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "broker_pipeline", "bench", "pipeline", "--shape", "tiny", *arguments]
    return subprocess.run([*words, "--json", str(path)], capture_output=True, text=True, check=False)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"]


@pytest.mark.slow
def test_the_whole_system_and_one_process_do_the_same_work_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.json"
    words = ["--stages", "2", "--pictures", "4", "--output-tokens", "4", "--concurrency", "2", "--rounds", "2"]
    words += ["--in-process-threads", "1", "--predict"]
    done = run_bench(*words, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(path)
    assert rows[-1]["predicted"]["layout"] == "1 copy, in 2 stages, blocks 0:3 3:6"
    assert rows[-1]["predicted"]["captions_per_s"] > 0
    assert f"{rows[-1]['predicted']['captions_per_s']:.1f} (estimated)" in done.stdout
    assert rows[0]["name"].startswith("one process")
    assert rows[-1]["name"] == "whole system, 2 stages"
    assert max(row["share"] for row in rows if row["name"].startswith("one process")) == 1
    assert {"gateway-0", "nats", "redis", "conductor-0", "vision-0", "stage-0", "stage-1"} <= set(rows[-1]["cpu_s"])
    assert {row["num_prompt_tokens"] for row in rows} == {rows[0]["num_prompt_tokens"]}
    assert [row["tokens_per_s"]["num_samples"] for row in rows] == [2] * len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "is_kept"), [("0.5", True), ("0", False)])
def test_questions_apart_begin_with_what_is_kept_unless_nothing_is(tmp_path: Path, share: str, is_kept: bool) -> None:
    path = tmp_path / "pipeline.json"
    words = ["--stages", "1", "--no-in-process", "--pictures", "12", "--picture-side", "448", "--output-tokens", "2"]
    words += ["--concurrency", "2", "--rounds", "1", "--questions", "3", "--questions-apart", "--kv-tokens", "8192"]
    done = run_bench(*words, "--with", f"conductor --kept-prefix-share {share}", path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    [breakdown] = rows_of(path)[0]["breakdowns"]
    assert "sessions began with that" in done.stdout
    assert (breakdown["prompts"]["num_kept_hits"] > 0) == is_kept


@pytest.mark.slow
def test_a_system_that_does_not_start_keeps_no_other_from_its_turn_and_a_breakdown_says_where_time_goes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pipeline.json"
    words = shlex.split("--stages 1 --vision separate --vision shared --no-in-process --rounds 1 --concurrency 8")
    words += shlex.split("--pictures 24 --picture-side 448 --output-tokens 16")
    words += ["--prompt", "Describe this image", "--profile", str(tmp_path / "traces")]
    words += [
        "--with",
        "stage --preprocess-threads 1",
        "--with",
        "conductor --max-preparing 4",
    ]  # without vision, refused
    done = run_bench(*words, path=path)
    assert done.returncode != 0
    assert "stage-0 did not start" in done.stderr
    assert "--preprocess-threads is for a vision worker" in done.stderr
    assert list((tmp_path / "traces" / "1-shared").iterdir())
    [row] = rows_of(path)
    assert row["name"] == "whole system, 1 stage, vision shared"
    assert row["num_prompt_tokens"] == 219
    assert row["share"] is None
    assert "vision-0" not in row["cpu_s"]
    assert row["middle_captions_per_s"]["median"] > 0
    [breakdown] = row["breakdowns"]
    workers = {worker["worker"]: worker for worker in breakdown["workers"]}
    assert workers["stage-0"]["compute_ms"] > 0
    assert len(workers) == 2
    assert breakdown["results_per_s"] > 0
    assert breakdown["tokens_per_result"] >= 1
    assert breakdown["job_s"]["median"] > breakdown["submit_s"]["median"] > 0
    assert breakdown["num_sessions"]
    assert breakdown["gpus"] is None or breakdown["gpus"]["watts"] > 0
    assert "sessions on average" in done.stdout


def test_a_cut_that_cannot_be_is_refused() -> None:
    words = shlex.split("pipeline --shape tiny --stages 1 --stages 7 --no-in-process --pictures 2 --output-tokens 2")
    result = CliRunner().invoke(command, words)
    assert isinstance(result.exception, ConfigurationError)
    assert "cannot be cut into 7 stages" in result.exception.message


def test_further_flags_name_a_command() -> None:
    result = CliRunner().invoke(command, ["pipeline", "--with", "nats --debug"])
    assert isinstance(result.exception, ConfigurationError)
    assert result.exception.field == "with"


def test_pictures_differ_and_are_the_same_every_time(tmp_path: Path) -> None:
    first, again = (write_pictures(tmp_path / name, "round", 5, 64) for name in ("a", "b"))
    contents = [(tmp_path / "a" / name).read_bytes() for name in first]
    assert first == again
    assert contents == [(tmp_path / "b" / name).read_bytes() for name in again]
    assert len(set(contents)) == 5


def test_room_for_keys_and_values_is_more_than_the_sessions_need() -> None:
    work = Work(prompt="Describe this image", pictures=(), picture_side=448, num_output_tokens=64, num_in_flight=256)
    assert 256 * (219 + 64) * 1.1 < work.kv_tokens(256) < 256 * (219 + 64) * 1.6


def test_the_middle_of_a_round_leaves_out_its_beginning_and_its_end() -> None:
    steady = [10.0 + index / 50 for index in range(100)]
    assert middle_rate([*([9.9] * 5), *steady[5:]]) == pytest.approx(50)
    assert middle_rate([1.0, 2.0]) is None
    assert middle_rate([1.0] * 20) is None
