"""A short drill of real processes: the conductor that conducts is killed, and then a gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kit.models.tiny_artifacts import tiny_artifact
from trials.soak.recovery.drill import RecoveryDrill, RecoverySettings
from trials.soak.system import soak_system

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180)]


async def test_streams_move_again_and_what_they_waited_is_told(tmp_path: Path) -> None:
    system = soak_system(tiny_artifact(), tmp_path, num_stages=2, num_spares=0)
    settings = RecoverySettings(num_faults=1, components=("conductor", "gateway"), calm_s=1.0)
    said: list[str] = []
    async with asyncio.timeout(150):
        report = await RecoveryDrill(system, settings, said.append).run()
    assert report.problems == ()
    assert any(line.startswith("kill conductor-") for line in said)
    found = report.components["conductor"]
    assert found.num_faults == 1
    assert found.num_streams >= 10
    assert 0.1 < found.p50 <= found.worst < report.seconds, "it took a while, and they went on"
    assert report.kinds["conductor kill"] == found
    assert report.components["gateway"].num_streams >= 3, "of the other gateway"
