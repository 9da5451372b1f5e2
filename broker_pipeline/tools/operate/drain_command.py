"""The command `broker-pipeline drain`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.config import option
from broker_pipeline.errors import WorkerNotFoundError
from broker_pipeline.exit_codes import OK, TEMPORARY
from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.tools.gateway_options import gateway_options

_PATIENCE_S = 10.0
_POLL_S = 0.5


@click.command()
@click.argument("workers", metavar="WORKER...", nargs=-1, required=True)
@option(
    "--wait", is_flag=True, envvar=None, show_envvar=False, help="Return when they have ended, not when they begin."
)
@option(
    "--timeout-s",
    default=None,
    type=click.FloatRange(min=0),
    envvar=None,
    show_envvar=False,
    help="With --wait: give up waiting after so many seconds; they go on draining.  [default: never]",
)
@option("--json", "as_json", is_flag=True, envvar=None, show_envvar=False, help="Print the workers' records as JSON.")
@gateway_options
def command(workers: tuple[str, ...], wait: bool, timeout_s: float | None, as_json: bool, **where: Any) -> None:
    """Empty stage or vision workers without failing a session; each ends when its last one has.

    A draining worker gets no new sessions. Those that it has end where they are, however long that takes; new jobs go
    to other workers for its layers, or wait where there are none. Then its process exits with 0. `broker-pipeline up`
    leaves it at that; so does systemd with Restart=on-failure.

    Exit codes: 0 done, 2 no such worker, 77 no operator's key, 69 no gateway, 75 still draining after --timeout-s.

    \b
    Examples:
      broker-pipeline drain stage-1
      broker-pipeline drain stage-1 vision-0 --wait --gateway http://gateway:8080
    """
    sys.exit(asyncio.run(_drain(workers, wait, timeout_s, as_json, **where)))


async def _drain(
    workers: Sequence[str], wait: bool, timeout_s: float | None, as_json: bool, *, gateway: str, key: str | None
) -> int:
    async with GatewayClient.open(gateway, patience_s=_PATIENCE_S, key=key) as client:
        await client.check()
        _require_known(await client.status(), workers)
        records = [await client.drain(worker) for worker in workers]
        for record in records:
            click.echo(msgspec.json.encode(record).decode() if as_json else f"{record.worker} drains")
        if lonely := _without_others(await client.status(), records):
            click.echo(
                f"note: nobody else does what {', '.join(lonely)} did: new jobs wait until somebody does", err=True
            )
        return await _until_gone(client, records, timeout_s, as_json) if wait else OK


def _require_known(status: PipelineStatus, workers: Sequence[str]) -> None:
    """Refuse a wrong name before any worker is drained."""
    live = [record.worker for record in status.workers]
    if unknown := [worker for worker in workers if worker not in live]:
        raise WorkerNotFoundError(
            f"no live worker is called {', '.join(unknown)}; there are: {', '.join(live) or 'none'}", field="worker"
        )


async def _until_gone(
    client: GatewayClient, records: Sequence[WorkerRecord], timeout_s: float | None, as_json: bool
) -> int:
    """Poll until the workers are off the list, saying what is left whenever that changes."""
    deadline = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    left = {record.instance: record.worker for record in records}
    told: dict[str, str] = {}
    while True:
        status = await client.status()
        present = {record.instance for record in status.workers}
        for instance, worker in list(left.items()):
            said = _describe(status, instance) if instance in present else "has ended"
            if told.get(instance) != said and not as_json:
                click.echo(f"{worker} {said}")
            told[instance] = said
            if instance not in present:
                del left[instance]
        if not left:
            return OK
        if time.monotonic() >= deadline:
            click.echo(f"still draining after {timeout_s:g} s: {', '.join(left.values())}", err=True)
            return TEMPORARY
        await asyncio.sleep(_POLL_S)


def _describe(status: PipelineStatus, instance: str) -> str:
    conductor = status.conductor
    for stage in conductor.stages if conductor else ():
        if stage.instance == instance:
            return f"drains; {stage.kv_used_tokens} KV tokens in use"
    for vision in conductor.vision if conductor else ():
        if vision.instance == instance:
            return f"drains; {vision.num_preparing} sessions in preparation"
    return "drains"


def _without_others(status: PipelineStatus, drained: Sequence[WorkerRecord]) -> list[str]:
    """Return those of the drained workers without whom no new job can run."""
    gone = {record.instance for record in drained}
    others = [record for record in status.workers if record.instance not in gone and record.state == "ready"]

    def is_replaced(record: WorkerRecord) -> bool:
        if record.blocks is None:
            return any(other.role == record.role for other in others)
        layers = {layer for other in others if other.blocks for layer in range(other.blocks.start, other.blocks.stop)}
        return layers.issuperset(range(record.blocks.start, record.blocks.stop))

    return [record.worker for record in drained if not is_replaced(record)]
