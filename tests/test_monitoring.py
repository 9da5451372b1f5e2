"""Alert rules and dashboard: promtool judges the rules, and gateways show every metric that either names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from broker_pipeline.messages.gateway import PipelineStatus, QueueStatus
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.messages.workers import TransportCounts
from gateway.metrics import Metrics
from tests.kit.acting.conductor import NOTHING_RUNS

DIRECTORY = Path(__file__).parents[1] / "monitoring"
RULES, DASHBOARD = DIRECTORY / "alerts.yml", DIRECTORY / "dashboard.json"


@pytest.fixture(scope="module")
def shown() -> frozenset[str]:
    """The names of all series that a gateway shows at /metrics."""
    metrics = Metrics("gateway-0", TransportCounts)
    conductor = ConductorStatus(**NOTHING_RUNS, model="m", fingerprint="f" * 64)
    queue = QueueStatus(num_waiting=0, num_in_progress=0)
    metrics.system.status = PipelineStatus(pipeline="main", workers=(), conductor=conductor, queue=queue, jobs={})
    families = re.findall(r"^# TYPE (\S+) (\S+)$", metrics.text().decode(), re.MULTILINE)
    buckets = {f"{name}_bucket" for name, kind in families if kind == "histogram"}
    return frozenset({name for name, _ in families} | buckets)


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=lambda path: path.name)
def test_every_metric_that_is_asked_for_is_shown_by_gateways(path: Path, shown: frozenset[str]) -> None:
    named = set(re.findall(r"\bbroker_pipeline_\w+", path.read_text()))
    assert len(named) > 5
    assert named <= shown


def test_each_panel_asks_for_something_and_has_a_place_of_its_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert all(target["expr"] for target in panel["targets"]), panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, which Debian's prometheus has")
@pytest.mark.parametrize("arguments", [["check", "rules", RULES.name], ["test", "rules", "alerts_test.yml"]])
def test_promtool_finds_the_rules_right(arguments: list[str]) -> None:
    run = subprocess.run(["promtool", *arguments], cwd=DIRECTORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
