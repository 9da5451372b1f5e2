import asyncio
import json
import shlex
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from broker_pipeline.scheduling.scheduler import Scheduler
from trials.bench.command import command
from trials.bench.conductor.rows import PARTS, ConductorRow
from trials.bench.conductor.stopwatch import Stopwatch


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--watched"]])
def test_the_cost_of_a_caption_is_told_by_part(tmp_path: Path, more: list[str]) -> None:
    report_path = tmp_path / "conductor.json"
    words = shlex.split("conductor --sessions 8 --stages 2 --output-tokens 8 --pace 400 --seconds 1.5")
    own = Scheduler.plan
    result = CliRunner().invoke(command, [*words, *more, "--json", str(report_path)])
    assert result.exit_code == 0, result.output
    assert "a caption" in result.output
    report = json.loads(report_path.read_text())
    assert report["bench"] == "conductor"
    [told] = report["rows"]
    row = msgspec.convert(told, ConductorRow)
    assert row.num_sessions == 8
    assert 20 < row.num_tokens < 1000
    used = {part for part in PARTS if row.parts_s[part] > 0}
    assert used >= set(PARTS) - {"commit"}
    assert "commit" in used or not more
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
