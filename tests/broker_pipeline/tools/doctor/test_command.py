"""`broker-pipeline doctor` as a person runs it: all well, all down, a wrong clock; and checks that hang."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline.errors import StateError
from broker_pipeline.process.terminal import make_console
from broker_pipeline.tools.doctor.examination import Check, examine
from broker_pipeline.tools.doctor.finding import Finding, fail, ok, warn
from broker_pipeline.tools.doctor.view import render_findings
from broker_pipeline.tools.local.place import free_port
from tests.kit.findings import levels
from tests.kit.models.tiny_artifacts import tiny_artifact
from trials.soak.faults import clocks


async def run(*arguments: str, **environment: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker_pipeline", "doctor", *arguments),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


def found(text: str) -> dict[str, Any]:
    told = json.loads(text)
    return levels([Finding(**finding) for finding in told["findings"]]) | {"all": told["ok"]}


async def test_all_is_well(nats_url: str, redis_url: str, namespace: str) -> None:
    model = str(tiny_artifact(tied=False))
    servers = ("--nats-url", nats_url, "--redis-url", redis_url, "--namespace", namespace)
    code, text = await run(*servers, "--model", model, "--blocks", "0:3", "--vision", "--full", "--json")
    assert code == 0, text
    shown = found(text)
    assert {check: shown[check] for check in ("broker", "redis", "clock", "artifact", "model", "packages")} == {
        **dict.fromkeys(("broker", "redis", "clock", "artifact", "model", "packages"), "ok")
    }
    assert shown["members"] == "warn"
    assert shown["all"] is True


async def test_all_is_down_and_that_takes_no_longer_than_one(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    code, text = await run(
        *("--nats-url", f"nats://{nowhere}", "--redis-url", f"redis://{nowhere}", "--model", str(tmp_path)),
        *("--timeout-s", "1"),
    )
    assert code == 1
    assert "broker" in text
    assert "→ start it there" in text
    assert "to mend" in text
    for check in ("clock", "members", "versions", "edges"):
        assert f"{check}" in text
    assert text.count("not looked at, for want of") == 5


@pytest.mark.skipif(clocks.library() is None, reason="needs Debian's libfaketime")
@pytest.mark.parametrize(("offset_s", "level"), [(120, "fail"), (-10, "warn")])
async def test_a_clock_that_is_wrong(
    nats_url: str, redis_url: str, namespace: str, tmp_path: Path, offset_s: int, level: str
) -> None:
    clocks.set_clock(tmp_path / "clock", offset_s)
    servers = ("--nats-url", nats_url, "--redis-url", redis_url, "--namespace", namespace)
    _, text = await run(*servers, "--json", **clocks.environment(tmp_path / "clock"))
    assert found(text)["clock"] == level


async def test_no_check_holds_up_another_and_errors_are_findings() -> None:
    async def hang() -> list[Finding]:
        await asyncio.Event().wait()
        return []

    async def be_well() -> list[Finding]:
        return [ok("c", "fine")]

    async def break_down() -> list[Finding]:
        raise StateError("Redis is gone")

    checks = {"a": Check(hang, "wake it", 0.05), "b": Check(break_down, "mend it", None), "c": Check(be_well, "", 1.0)}
    started = time.monotonic()
    findings = await examine(checks)
    assert time.monotonic() - started < 5
    assert [(each.check, each.level) for each in findings] == [("a", "fail"), ("b", "fail"), ("c", "ok")]
    assert ("0.05 s" in findings[0].found, findings[0].remedy) == (True, "wake it")
    assert (findings[1].found, findings[1].remedy) == ("Redis is gone", "mend it")


def test_the_table_is_read_from_left_to_right(capsys: pytest.CaptureFixture[str]) -> None:
    make_console().print(render_findings([ok("broker", "is there"), warn("clock", "3 s ahead", "set it")]))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["broker", "ok", "is", "there"]
    assert lines[2] == ["→", "set", "it"]
    assert " ".join(lines[-1]) == "0 to mend, 1 to look at, 1 are well"
    assert fail("x", "y", "z").level == "fail"
