"""`--otlp-endpoint` on a whole pipeline: one caption is one trace at a collector, also where a stage died meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from broker_pipeline.tracing.job_traces import trace_id
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.pipeline_client import client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CALLER = f"00-{'ab' * 16}-{'cd' * 8}-01"


@dataclass
class Collector:
    """Takes spans as any OpenTelemetry collector does: protobuf over HTTP."""

    url: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)
    """With the name of the service that each is from."""

    async def export(self, request: web.Request) -> web.Response:
        body = await request.read()
        said = ExportTraceServiceRequest()
        said.ParseFromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        for of_resource in said.resource_spans:
            names = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            for of_scope in of_resource.scope_spans:
                self.spans += [
                    (names["service.name"].removeprefix("broker-pipeline-"), span) for span in of_scope.spans
                ]
        return web.Response(body=b"", content_type="application/x-protobuf")

    def trace(self, job_id: str) -> list[tuple[str, Span]]:
        return [(service, span) for service, span in self.spans if span.trace_id.hex() == trace_id(job_id)]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.add_routes([web.post("/v1/traces", collector.export)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    collector.url = f"http://{host}:{port}"
    try:
        yield collector
    finally:
        await runner.cleanup()


def log_lines(directory: Path) -> Iterator[dict[str, object]]:
    for path in directory.rglob("*.log"):
        for line in path.read_text().splitlines():
            if line.startswith("{"):
                yield json.loads(line)


async def test_a_caption_is_one_trace_through_all_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    async with collecting() as collector:
        cluster = tiny_cluster(tmp_path, DENSE, "2,4", otlp_endpoint=collector.url)
        async with cluster, client_of(cluster) as client:
            client.headers["traceparent"] = CALLER
            job_id = await client.submit(picture(1), max_tokens=400, ignore_eos=True)
            await eventually(lambda: client.tokens(job_id))
            cluster.processes["stage-1"].process.kill(signal.SIGKILL)
            await client.run([job_id], timeout_s=60)
            await eventually(lambda: any(span.name == "job" for _, span in collector.trace(job_id)))
            await asyncio.wait_for(cluster.processes["stage-0"].restart(), 60)  # whatever it has not sent yet
            await eventually(lambda: is_whole(collector.trace(job_id)))
        trace = collector.trace(job_id)
        by_place = {(service, span.name) for service, span in trace}
        assert {
            ("gateway", "request"),
            ("gateway", "store media"),
            ("conductor", "job"),
            ("conductor", "attempt 1"),
            ("conductor", "attempt 2"),
            ("vision", "prepare"),
            ("vision", "deliver rows"),
            ("stage", "session"),
        } <= by_place
        names = {span.span_id: span.name for _, span in trace}
        parents = {(span.name, names.get(span.parent_span_id, "")) for _, span in trace}
        assert ("job", "") in parents
        assert ("attempt 2", "job") in parents
        assert ("session", "attempt 2") in parents
        assert all(parent for name, parent in parents if name != "job"), "every other span hangs from one that is there"
        (root,) = [span for _, span in trace if span.name == "job"]
        assert all(root.start_time_unix_nano - 5e9 < span.start_time_unix_nano for _, span in trace)
        (request,) = [span for _, span in trace if span.links]
        assert (request.name, request.links[0].trace_id.hex()) == ("request", "ab" * 16)
        assert "Describe" not in str(trace), "no prompt is told"
    logged = {line.get("trace_id") for line in log_lines(tmp_path) if line.get("job") == job_id}
    assert logged == {trace_id(job_id)}


def is_whole(trace: list[tuple[str, Span]]) -> bool:
    """Whether all three stages have told of the last attempt."""
    attempts = [span for service, span in trace if service == "stage" and "attempt" in span.name + str(span.attributes)]
    return len({attribute(span, "worker") for span in attempts if attribute(span, "attempt") == "2"}) == 3


def attribute(span: Span, name: str) -> str:
    for each in span.attributes:
        if each.key == f"broker_pipeline.{name}":
            return each.value.string_value or str(each.value.int_value)
    return ""
