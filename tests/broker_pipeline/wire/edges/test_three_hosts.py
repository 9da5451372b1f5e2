"""Three stages on three hosts, which are network namespaces; NATS, Redis and everything else on a fourth."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.messages.workers import CarriedCounts
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.place import Place
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.netlab import LinkShape, is_possible, netlab
from tests.kit.running.pipeline_client import client_of
from tests.kit.waiting import eventually

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(not is_possible(), reason="network namespaces need root and /dev/net/tun"),
]

NUM_JOBS = 12


async def test_payloads_go_from_host_to_host_without_the_broker(tmp_path: Path) -> None:
    settings = tiny_cluster(tmp_path, DENSE, "2,4", edge_flags={"--edges": "tcp"}, is_insecure=True).settings
    with netlab(3, LinkShape(rate_mbit=1000, delay_s=0.001)) as lab, lab.entered(0):
        hub = Place(lab.address(0))
        places = dict.fromkeys(("nats", "redis", "gateway-0", "conductor-0", "vision-0"), hub)
        for host in (1, 2, 3):
            places[f"stage-{host - 1}"] = Place(lab.address(host), tuple(lab.inside(host, ())))
        async with LocalCluster(settings, places=places) as cluster, client_of(cluster) as client:
            first = await client.wait([await client.submit(picture(0))])
            again = await client.wait(await asyncio.gather(*(client.submit(picture(0)) for _ in range(NUM_JOBS))))
            assert {record.status for record in (*first, *again)} == {"succeeded"}
            texts = {record.result.text for record in (*first, *again) if record.result is not None}
            assert len(texts) == 1, "prompts over NATS, edges or both: the same tokens"

            async def carried() -> dict[str, dict[str, CarriedCounts]]:
                status = await fetch_status(cluster.gateway_url)
                assert status.conductor is not None
                return {name: counts.carried for name, counts in status.conductor.transport.items()}

            async def by_edges() -> bool:
                counts = await carried()
                return all("tcp" in counts.get(name, {}) for name in ("vision-0", "stage-0", "stage-1"))

            await eventually(by_edges)
            print(await carried())
