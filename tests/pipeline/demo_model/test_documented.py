"""Every example of `docs/api.md` that is a curl command, typed as it stands there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest

from broker_pipeline.tools.demo.pictures import scenes
from tests.kit.documents import ROOT
from tests.kit.running.pipeline_client import PipelineClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]

_BLOCK = re.compile(r"^```sh\n(curl .*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = _BLOCK.findall((ROOT / "docs/api.md").read_text())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.findall(r"8080(\S+)", example)[0])
async def test_an_example_is_answered(demo: PipelineClient, model: str, example: str, tmp_path: Path) -> None:
    shutil.copy(scenes()[0].path, tmp_path / "photo.jpg")
    typed = example.replace("http://127.0.0.1:8080", demo.cluster.gateway_url).replace('"demo"', f'"{model}"')
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", typed.replace("curl ", "curl -sSf "), cwd=tmp_path, stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(shell.communicate(), 60)
    assert shell.returncode == 0, f"{typed}\n{err.decode()}"
    if "[DONE]" not in out.decode():
        assert "error" not in json.loads(out) or json.loads(out)["error"] is None


async def test_there_are_examples_of_every_kind() -> None:
    assert {"/v1/jobs", "/v1/chat/completions", "/v1/responses", "/v1/models"} <= {
        path for example in EXAMPLES for path in re.findall(r"8080([^\s?]+)", example)
    }
