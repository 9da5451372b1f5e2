"""`bench serve` against a running pipeline."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.kit.running.pipeline_client import PipelineClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="package")]


async def bench(url: str, *options: str) -> tuple[int, str]:
    command = (sys.executable, "-m", "broker_pipeline", "bench", "serve", "--url", url, *options)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_every_request_is_answered_beside_clients_that_do_not_read(demo: PipelineClient, tmp_path: Path) -> None:
    report = tmp_path / "serve.json"
    work = ("--num-prompts", "12", "--rate", "20", "--picture-side", "64", "--output-tokens", "8", "--unread", "3")
    status, said = await bench(f"{demo.cluster.gateway_url}/v1", *work, "--json", str(report))
    assert status == 0, said
    [row] = json.loads(report.read_text())["rows"]
    assert (row["completed"], row["failed"], row["total_output_tokens"]) == (12, {}, 96)
    assert 0 < row["ttft_ms"]["median"] < row["e2el_ms"]["median"]
    assert "TTFT" in said


async def test_refusals_are_counted_and_end_the_command_with_a_failure(demo: PipelineClient) -> None:
    work = ("--num-prompts", "2", "--picture-side", "0", "--output-tokens", "200000")
    status, said = await bench(f"{demo.cluster.gateway_url}/v1", *work)
    assert status == 1
    assert "2 x HTTP 400" in said


async def test_without_a_server_it_says_what_to_give() -> None:
    status, said = await bench("http://127.0.0.1:9/v1")
    assert status == 69
    assert "--url" in said
