"""A broker that takes smaller messages than others: 64 KiB from the start, and 16 KiB after a restart in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_pipeline.wire.transport import Transport
from tests.kit.pictures import picture
from tests.kit.running.drill import crowd_questions, decoding, fault_cluster, undisturbed
from tests.kit.running.pipeline_client import PROMPT, client_of

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(120)]

QUESTIONS = crowd_questions(16, 80)
KIB = 1024
LARGE_PICTURE = picture(1, 900, 700)
"""Its file, its rows and its prefill are all larger than one message may be."""


async def max_payload_of(nats_url: str) -> int:
    async with Transport.open(nats_url, name="test") as transport:
        return transport.link.small.max_payload


async def test_less_than_expected_and_after_a_restart_still_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(LARGE_PICTURE) > 64 * KIB
    monkeypatch.setattr("broker_pipeline.tools.local.servers.MAX_PAYLOAD_BYTES", 64 * KIB)
    cluster = fault_cluster(tmp_path / "run", "3")
    async with cluster, client_of(cluster) as client:
        assert await max_payload_of(cluster.nats_url) == 64 * KIB
        [large] = await client.run([await client.submit(LARGE_PICTURE, max_tokens=8, ignore_eos=True)])
        expected = await undisturbed(client, QUESTIONS)
        monkeypatch.setattr("broker_pipeline.tools.local.servers.MAX_PAYLOAD_BYTES", 16 * KIB)
        async with decoding(client, QUESTIONS, 10, at_once=8) as crowd:
            cluster.processes["nats"].kill()
            assert await crowd.finish() == expected
        assert await max_payload_of(cluster.nats_url) == 16 * KIB
        again = await client.submit(LARGE_PICTURE, prompt=PROMPT, max_tokens=8, ignore_eos=True)
        assert await client.run([again]) == [large]
        await client.wait_empty()
