"""Which ways lead from this host to each worker of the pipeline: tried as a worker would, and closed again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from broker_pipeline import subjects
from broker_pipeline.errors import EdgeLostError, NoResponderError, PipelineError
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.tools.doctor.finding import Finding, fail, ok, warn
from broker_pipeline.wire.edges.edge import EdgeDialer
from broker_pipeline.wire.edges.kinds import edge_dialers
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.transport import Transport


@dataclass(frozen=True, slots=True)
class EdgeFacts:
    """What became of asking one worker for an edge."""

    worker: str
    host: str
    kind: str = ""
    """Of the edge that stood; empty for none."""
    addresses: tuple[str, ...] = ()
    """That it offers over the network."""
    silence: str = ""
    """Why it did not answer at all."""
    is_deaf: bool = False
    """Whether nobody listens there, which may be meant so."""
    refusals: tuple[str, ...] = ()


async def look_at_edges(
    transport: Transport, records: Sequence[WorkerRecord], settings: EdgeSettings, timeout_s: float
) -> list[EdgeFacts]:
    """Ask every worker at once for a way in, which it says within `timeout_s`, and take it."""
    dialers = list(edge_dialers(settings))
    certificate = settings.identity.fingerprint if settings.identity is not None and settings.is_encrypted else ""
    return await asyncio.gather(*(_look(transport, record, dialers, timeout_s, certificate) for record in records))


def judge_edges(facts: Sequence[EdgeFacts]) -> list[Finding]:
    """Say how each worker is reached."""
    return [_judge(each) for each in facts] or [ok("edges", "no other worker is there")]


def _judge(facts: EdgeFacts) -> Finding:
    who = f"{facts.worker} on {facts.host or 'some host'}"
    if facts.kind:
        by = f"{facts.kind} to {', '.join(facts.addresses)}" if facts.kind == "tcp" else facts.kind
        return ok("edges", f"{who}: {by}")
    if facts.is_deaf:
        remedy = "start it with --edges auto; if it has just died, ask again in five seconds"
        return warn("edges", f"{who} offers no edge: payloads to it take NATS", remedy)
    if facts.silence:
        return fail("edges", f"{who}: {facts.silence}", "look at its log; start it again where it hangs")
    where = ", ".join(facts.addresses) or "no address"
    said = f"{who} is not reached at {where}: payloads take NATS"
    said += f" ({'; '.join(facts.refusals)})" if facts.refusals else ""
    return warn("edges", said, "open its --edge-port in firewalls; --edge-host is where others reach it")


async def _look(
    transport: Transport, record: WorkerRecord, dialers: Sequence[EdgeDialer], timeout_s: float, certificate: str
) -> EdgeFacts:
    ask = EdgeAsk(kinds=tuple(dialer.kind for dialer in dialers), certificate=certificate)
    try:
        answer = await transport.request(subjects.edges(record.subject), ask, reply_type=EdgeOffer, timeout_s=timeout_s)
    except NoResponderError:
        return EdgeFacts(record.worker, record.host, is_deaf=True)
    except PipelineError as error:
        return EdgeFacts(record.worker, record.host, silence=error.message)
    offer = answer.body
    addresses = offer.tcp.addresses if offer.tcp is not None else ()
    kind, refusals = await _dial(offer, dialers)
    return EdgeFacts(record.worker, record.host, kind, addresses, refusals=refusals)


async def _dial(offer: EdgeOffer, dialers: Sequence[EdgeDialer]) -> tuple[str, tuple[str, ...]]:
    refusals: list[str] = []
    for dialer in dialers:
        try:
            if (edge := await dialer.connect(offer)) is not None:
                await edge.close()
                return dialer.kind, tuple(refusals)
        except EdgeLostError as error:
            refusals.append(error.message)
    return "", tuple(refusals)
