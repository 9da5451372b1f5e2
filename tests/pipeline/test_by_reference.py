"""Pictures by reference through a whole pipeline: workers read them, and neither gateway nor NATS has their bytes."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import aiohttp
import pytest

from broker_pipeline import subjects
from broker_pipeline.storage.media_objects import NUM_STREAMS
from broker_pipeline.wire.transport import Transport
from tests.kit.pictures import picture, truncated_jpeg
from tests.kit.running.captioner import Captioner, lines
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.pipeline_client import client_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
ASKED = ("--temperature", "0", "--max-tokens", "6", "--no-guards", "--prompt", "What?")


def make_pictures(root: Path) -> None:
    """Three files, a broken one, and a tar of three more."""
    (root / "a folder").mkdir(parents=True)
    for number in range(3):
        (root / "a folder" / f"é{number}.png").write_bytes(picture(number))
    (root / "a folder" / "broken.jpg").write_bytes(truncated_jpeg())
    with tarfile.open(root / "more.tar", "w") as tar:
        for number in range(3, 6):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(content := picture(number))
            tar.addfile(info, io.BytesIO(content))


async def stored_bytes(transport: Transport, namespace: str) -> int:
    streams = [subjects.media_stream(namespace, shard) for shard in range(NUM_STREAMS)]
    infos = [await transport.jetstream().stream_info(stream) for stream in streams]
    return sum(info.state.bytes for info in infos)


async def test_captions_by_reference_are_those_by_value(tmp_path: Path) -> None:
    root = tmp_path / "shared"
    make_pictures(root)
    async with tiny_cluster(tmp_path / "run", DENSE, "2", media_roots=(str(root),)) as cluster:
        captioner = Captioner(tmp_path, cluster.gateway_url)
        paths = ("shared/a folder", "shared/more.tar")
        referred = await captioner.run(*paths, "--by-reference", "--out", "referred.jsonl", *ASKED)
        async with Transport.open(cluster.nats_url, name="test") as transport:
            assert await stored_bytes(transport, "bp") == 0
        sent = await captioner.run(*paths, "--again", "--out", "sent.jsonl", *ASKED)
        assert (referred.code, sent.code) == (1, 1), referred.text + sent.text
        by_reference, by_value = (
            {line["path"]: (line.get("caption"), line.get("error", {}).get("code")) for line in lines(tmp_path / name)}
            for name in ("referred.jsonl", "sent.jsonl")
        )
        assert by_reference == by_value
        assert [said[1] for said in by_value.values()].count("truncated_image") == 1
        assert sum(said[0] is not None for said in by_value.values()) == 6
        await check_wrong_references(cluster.gateway_url, root)
        async with client_of(cluster) as client:
            assert await client.run([await client.submit(picture(1), max_tokens=3)])


async def check_wrong_references(url: str, root: Path) -> None:
    """What is not there, or another, fails its job with a reason, and names the field."""
    sha256 = hashlib.sha256(picture(9)).hexdigest()  # which nobody has encoded yet
    wrong = {"gone.png": "No such file", "a folder/é1.png": "has changed since", "a folder": "Is a directory"}
    jobs = [{"images": [f"{(root / name).as_uri()}#sha256={sha256}"]} for name in wrong]
    async with aiohttp.ClientSession(base_url=url) as http:
        async with http.post("/v1/jobs/bulk", json={"jobs": jobs}) as answer:
            job_ids = [each["job"]["job_id"] for each in (await answer.json())["jobs"]]
        for job_id, said in zip(job_ids, wrong.values(), strict=True):
            async with http.get(f"/v1/jobs/{job_id}?wait_s=30") as answer:
                record = await answer.json()
            assert (record["status"], record["error"]["code"]) == ("failed", "media_fetch"), record
            assert record["error"]["field"] == "images[0]"
            assert said in record["error"]["message"]
