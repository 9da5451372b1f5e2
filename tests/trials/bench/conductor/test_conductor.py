import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker_pipeline.scheduling.scheduler import Scheduler
from trials.bench.command import command
from trials.bench.conductor.measurement import measure_conductor
from trials.bench.conductor.rows import PARTS, ConductorBenchSettings
from trials.bench.conductor.stopwatch import Stopwatch


@pytest.mark.parametrize("are_watched", [False, True])
async def test_the_cost_of_a_caption_is_told_by_part(nats_url: str, redis_url: str, are_watched: bool) -> None:
    settings = ConductorBenchSettings(
        num_sessions=(8,), num_stages=2, num_output_tokens=8, tokens_per_s=400.0, seconds=1.5, are_watched=are_watched
    )
    own = Scheduler.plan
    (row,) = await measure_conductor(settings, nats_url, redis_url)
    assert row.num_sessions == 8
    assert 20 < row.num_tokens < 1000
    used = {part for part in PARTS if row.parts_s[part] > 0}
    assert used >= set(PARTS) - {"commit"}
    assert "commit" in used or not are_watched
    assert row.caption_us * row.num_tokens / 8 == pytest.approx(row.total_s * 1e6)
    assert Scheduler.plan is own, "the conductor's parts are left as they were"


def test_a_part_inside_another_is_taken_from_that() -> None:
    watch = Stopwatch()
    with watch.part("outer"):
        before = watch.seconds["outer"]
        with watch.part("inner"):
            sum(range(100_000))
        after = watch.seconds["outer"]
    assert after - before < watch.seconds["inner"]


async def test_steps_count_work_and_not_waiting_and_hand_on_what_is_raised() -> None:
    watch = Stopwatch()

    async def work() -> int:
        await asyncio.sleep(0.05)
        return 7

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    assert await watch.steps("work", work()) == 7
    assert watch.seconds["work"] < 0.05
    with pytest.raises(KeyError):
        await watch.steps("fail", fail())
    task = asyncio.ensure_future(watch.steps("work", asyncio.sleep(10.0)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.slow
def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    report_path = tmp_path / "conductor.json"
    arguments = ["conductor", "--sessions", "4", "--pace", "200", "--seconds", "0.5", "--json", str(report_path)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(report_path.read_text())
    assert report["bench"] == "conductor"
    assert [row["num_sessions"] for row in report["rows"]] == [4]
    assert "a caption" in result.output
