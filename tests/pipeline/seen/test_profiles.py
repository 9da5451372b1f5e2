"""`--profile` on a whole pipeline: every process writes what it did, also one that is killed; all is in order."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from broker_pipeline.tools.trace.command import command
from broker_pipeline.tools.trace.messages import Message
from broker_pipeline.tools.trace.profile import Profile, load_profile
from broker_pipeline.tools.trace.spans import ProcessTrace, Span
from broker_pipeline.tools.trace.summary import ProfileSummary, summarise
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.pipeline_client import PipelineClient, client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_NUM_STAGES = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def directory(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """A profile of captions, a stage that was killed meanwhile, and captions behind it."""
    root = tmp_path_factory.mktemp("profile")
    profile = root / "profile"
    async with tiny_cluster(root / "run", DENSE, "2,4", profile=profile) as cluster, client_of(cluster) as client:
        await client.run([await client.submit(picture(seed), max_tokens=20, ignore_eos=True) for seed in range(6)])
        jobs = [await client.submit(picture(seed), max_tokens=150, ignore_eos=True) for seed in range(10, 16)]
        await eventually(lambda: has_begun(client, jobs))
        cluster.processes["stage-1"].process.kill(signal.SIGKILL)
        jobs.append(await client.submit(picture(20), max_tokens=20, ignore_eos=True))
        await client.run(jobs, timeout_s=90)
    yield profile


async def has_begun(client: PipelineClient, job_ids: list[str]) -> bool:
    return all([await client.tokens(job_id) for job_id in job_ids])


@pytest.fixture(scope="module")
def profile(directory: Path) -> Profile:
    return load_profile(directory)


def by_name(profile: Profile) -> dict[str, list[ProcessTrace]]:
    found: defaultdict[str, list[ProcessTrace]] = defaultdict(list)
    for process in profile.processes:
        found[process.name].append(process)
    return found


def test_every_process_left_a_whole_file_the_killed_one_as_well(directory: Path) -> None:
    services: defaultdict[str, int] = defaultdict(int)
    for path in directory.glob("*.json"):
        events = json.loads(path.read_bytes())["traceEvents"]
        assert any(event["ph"] in "Xb" for event in events), path
        services[path.name.partition("-")[0]] += 1
    assert services == {"gateway": 1, "conductor": 1, "vision": 1, "stage": _NUM_STAGES + 1}


def test_a_microbatch_goes_through_the_stages_in_order(profile: Profile) -> None:
    """Arrows lead from the conductor to stage 0, 1, 2 and back, and nothing on the way happens before its cause."""
    ways: defaultdict[tuple[int, int], list[Message]] = defaultdict(list)
    for message in profile.messages:
        if message.encode.microbatch is not None:
            ways[message.encode.microbatch].append(message)
    whole = [way for way in ways.values() if len(way) == _NUM_STAGES + 1]
    assert len(whole) > 40
    for way in whole:
        assert [each.sender.name for each in way] == ["conductor", "stage-0", "stage-1", "stage-2"]
        assert [each.receiver.name for each in way] == ["stage-0", "stage-1", "stage-2", "conductor"]
        last = 0
        for message in way:
            assert last <= message.encode.start <= message.left <= message.arrived
            last = message.arrived
            if message.receiver.name.startswith("stage"):
                last = _through(message.receiver, message.receive)
        completed = _only(way[-1].receiver, "complete", way[0].encode.microbatch)
        assert last <= completed.start


def _through(stage: ProcessTrace, received: Span) -> int:
    """Check the order inside of a stage and return when it had computed."""
    check, queue, step, collect = (
        _only(stage, name, received.microbatch) for name in ("check", "queue", "step", "collect")
    )
    assert received.stop <= check.start <= queue.start <= check.stop
    assert queue.stop <= step.start <= step.stop <= collect.start
    return collect.stop


def _only(process: ProcessTrace, name: str, microbatch: tuple[int, int] | None) -> Span:
    [span] = [span for span in process.spans if span.name == name and span.microbatch == microbatch]
    return span


def test_bubbles_and_computation_do_not_overlap(profile: Profile) -> None:
    for name in ("stage-0", "stage-2"):
        [stage] = by_name(profile)[name]
        kinds = {"compute", "bubble"}
        spans = sorted((span for span in stage.spans if span.kind in kinds), key=lambda span: span.start)
        assert {span.kind for span in spans} == kinds
        for before, after in pairwise(spans):
            assert before.stop <= after.start + 1_000


def test_pictures_are_shown_on_their_way_as_well(profile: Profile) -> None:
    [vision] = by_name(profile)["vision-0"]
    names = {span.name for span in vision.spans}
    assert {"prepare", "fetch", "decode", "lay out prompt", "patches", "tower", "deliver rows", "wire"} <= names
    [gateway] = by_name(profile)["gateway"]
    assert {"request", "store media", "create job", "queue job"} <= {span.name for span in gateway.spans}
    [conductor] = by_name(profile)["conductor"]
    assert {"plan", "build", "encode", "send", "receive", "complete", "commit"} <= {
        span.name for span in conductor.spans
    }


def test_the_summary_accounts_for_a_microbatch_s_time(profile: Profile) -> None:
    summary: ProfileSummary = summarise(profile)
    parts: dict[str, Any] = dict(summary.round_ms)
    whole = parts.pop("whole")
    assert 0.8 * whole <= sum(parts.values()) <= 1.05 * whole
    stages = [worker for worker in summary.workers if worker.service == "stage"]
    assert all(0 < stage.busy < 1 and 0 <= stage.bubble < 1 for stage in stages)
    assert all({"receive", "check", "encode", "send"} <= stage.host_us.keys() for stage in stages)


def test_the_command_joins_all_of_it(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    done = CliRunner().invoke(command, ["merge", str(directory), "-o", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    events = json.loads(out.read_bytes())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "b", "e", "s", "f"}
    names = [event["args"]["name"].partition(" on ")[0] for event in events if event["name"] == "process_name"]
    assert sum(name.startswith("stage-1 (") for name in names) == 2, "the killed process and the one after it"
