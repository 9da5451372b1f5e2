"""Many schedules: which seeds have run, and that a process that dies or hangs is said and replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.simulation import crew
from tests.simulation.campaign import BLOCK, Campaign
from tests.simulation.crew import Crew

ROOT = Path(__file__).parents[2]


def _verdict(seed: int) -> SimpleNamespace:
    problems = ("wrong",) if seed in (7, 60) else ()
    return SimpleNamespace(schedule=SimpleNamespace(faults=(1, 2)), took_s=1.0, problems=problems)


def _dies_at_30(seed: int) -> SimpleNamespace:
    if seed == 30:
        os._exit(3)
    return _verdict(seed)


def _hangs_at_30(seed: int) -> SimpleNamespace:
    if seed == 30:
        threading.Event().wait()
    return _verdict(seed)


def test_every_seed_runs_once_and_failures_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "simulate", _verdict)
    told: list[str] = []
    campaign = Campaign(5, 4 * BLOCK + 3, 2, keeps_going=True, tell=told.append)
    campaign.run()
    seen = campaign.seen()
    assert (seen["num_schedules"], seen["first_seed"], seen["last_seed"]) == (103, 5, 107)
    assert (seen["num_faults"], seen["failed_seeds"], seen["not_run"]) == (206, [7, 60], {})
    assert sum("problems" in line for line in told) == 2  # beside what is told every few seconds
    assert not campaign.is_good


def test_it_ends_with_the_first_failure_unless_told_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "simulate", _verdict)
    campaign = Campaign(0, 100 * BLOCK, 1)
    campaign.run()
    assert campaign.seen()["failed_seeds"] == [7]
    assert campaign.num_ran == campaign.next_seed == BLOCK


def test_a_process_that_dies_costs_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "simulate", _dies_at_30)
    campaign = Campaign(0, 8 * BLOCK, 2, keeps_going=True)
    campaign.run()
    assert campaign.num_ran == 7 * BLOCK
    assert campaign.seen()["not_run"] == {"25 to 49": "its process has died (exit code 3)"}


def test_a_process_that_hangs_costs_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "simulate", _hangs_at_30)
    blocks = [range(1, 3), range(30, 31), range(31, 33)]
    lost = {ran.seeds: ran.lost for ran in Crew(1, silent_s=2.0).run(iter(blocks))}
    assert lost == {blocks[0]: "", blocks[1]: "it was not over after 2 s", blocks[2]: ""}


def test_no_seed_is_handed_out_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "simulate", _verdict)
    campaign = Campaign(100, 10**12, 2, for_s=0.2, keeps_going=True)
    campaign.run()
    seen = campaign.seen()
    assert seen["num_schedules"] == seen["last_seed"] - 99 > 0
    assert campaign.took_s < 30


def test_the_command_needs_no_test_environment_and_leaves_a_receipt(tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['pytest', 'hypothesis', 'torch', 'openai'])); "
        f"sys.argv[1:] = ['-n', '3', '-j', '2', '--seed', '11', '--receipt', {str(receipt)!r}]; "
        "runpy.run_module('tests.simulation', run_name='__main__', alter_sys=True)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    seen = json.loads(receipt.read_text())
    assert (seen["num_schedules"], seen["first_seed"], seen["last_seed"]) == (3, 11, 13)
    assert seen["command"].startswith("python -m tests.simulation -n 3")
    assert "cpu" in seen["machine"]
