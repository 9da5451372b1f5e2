"""The command `broker-pipeline failed`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import click
import msgspec

from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.config import option
from broker_pipeline.errors import JobNotFoundError, JobStateError, MediaMissingError
from broker_pipeline.exit_codes import OK, SOME_FAILED, raising_first_error
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.tools.gateway_options import gateway_options
from broker_pipeline.tools.operate.failed_view import render_failures, render_job, wide_console

_PATIENCE_S = 10.0
_NUM_AT_ONCE = 8

F = TypeVar("F", bound=Callable[..., Any])


def _shared(function: F) -> F:
    for decorate in (
        option("--json", "as_json", is_flag=True, envvar=None, show_envvar=False, help="One JSON record a line."),
        gateway_options,
    ):
        function = decorate(function)
    return function


def _choice(verb: str) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for add in (
            option("--code", default=None, envvar=None, show_envvar=False, help="With --all: only this kind of error."),
            option(
                "--all", "takes_all", is_flag=True, envvar=None, show_envvar=False, help=f"{verb} every failed job."
            ),
            click.argument("job_ids", metavar="[JOB]...", nargs=-1),
        ):
            function = add(function)
        return function

    return decorate


@click.group()
def command() -> None:
    """See jobs that have failed, why, and send them again.

    A job fails when its input is wrong, or when every attempt that it was allowed came to nothing. Failed jobs are kept
    for seven days with their cause and, as long as there is room, with their pictures.

    \b
    Examples:
      broker-pipeline failed list
      broker-pipeline failed show 01a20c939b71b525477c6210a71f
      broker-pipeline failed retry 01a20c939b71b525477c6210a71f --wait
      broker-pipeline failed retry --all --code retries_exhausted
    """


@command.command("list")
@option("--limit", default=100, type=click.IntRange(min=1), envvar=None, show_envvar=False, help="Most jobs to list.")
@_shared
def list_failed(limit: int, as_json: bool, **where: Any) -> None:
    """List failed jobs, newest first, with the last cause of each."""
    records = asyncio.run(_with_client(where, lambda client: _collect(client, None, limit)))
    if as_json:
        _print_json(records)
    elif records:
        wide_console().print(render_failures(records, time.time()))
    else:
        click.echo("no job has failed, of those that are kept")


@command.command("show")
@click.argument("job_id", metavar="JOB")
@_shared
def show(job_id: str, as_json: bool, **where: Any) -> None:
    """Show one job: how it ended, why, and how it had ended before it was sent again."""
    record = asyncio.run(_with_client(where, lambda client: client.job(job_id)))
    if as_json:
        _print_json([record])
    else:
        wide_console().print(render_job(record))


@command.command("retry")
@_choice("Send")
@option("--wait", is_flag=True, envvar=None, show_envvar=False, help="Wait for their ends, and say how they ended.")
@_shared
def retry(job_ids: tuple[str, ...], takes_all: bool, code: str | None, wait: bool, as_json: bool, **where: Any) -> None:
    """Send failed or cancelled jobs again.

    A job keeps its id and gets all its attempts anew; how it had ended stays in its record. A cancelled job can be sent
    again as long as it has no pictures, or they are still stored.

    Exit codes: 0 all sent (with --wait: all succeeded), 1 some not, 69 no gateway.
    """

    async def act(client: GatewayClient, job_id: str) -> JobRecord:
        record = await client.retry(job_id)
        return await client.wait(job_id) if wait else record

    def is_well(record: JobRecord) -> bool:
        return not wait or record.status == "succeeded"

    _run_on_jobs(job_ids, takes_all, code, where, as_json, act, is_well)


@command.command("discard")
@_choice("Discard")
@option("--yes", is_flag=True, envvar=None, show_envvar=False, help="With --all: do not ask.")
@_shared
def discard(
    job_ids: tuple[str, ...], takes_all: bool, code: str | None, yes: bool, as_json: bool, **where: Any
) -> None:
    """Forget failed jobs and their pictures.

    Nothing of them remains, and what was sent with their idempotency keys may be sent anew.
    """
    if takes_all and not yes:
        click.confirm("Forget every failed job" + (f" with {code}" if code else "") + "?", abort=True)

    async def act(client: GatewayClient, job_id: str) -> JobRecord:
        record = await client.job(job_id)
        if record.status != "failed":
            raise JobStateError(f"job {job_id} is {record.status}; only failed jobs are discarded")
        return await client.delete(job_id)

    _run_on_jobs(job_ids, takes_all, code, where, as_json, act, lambda _: True)


def _run_on_jobs(
    job_ids: tuple[str, ...],
    takes_all: bool,
    code: str | None,
    where: dict[str, Any],
    as_json: bool,
    act: Callable[[GatewayClient, str], Awaitable[JobRecord]],
    is_well: Callable[[JobRecord], bool],
) -> None:
    """Do something with each job, some at a time, say what came of it, and exit."""
    if takes_all == bool(job_ids):
        raise click.UsageError("name jobs, or say --all")
    if code is not None and not takes_all:
        raise click.UsageError("--code goes with --all")
    slots = asyncio.Semaphore(_NUM_AT_ONCE)

    async def one(client: GatewayClient, job_id: str) -> bool:
        async with slots:
            try:
                record = await act(client, job_id)
            except (JobNotFoundError, JobStateError, MediaMissingError) as error:
                click.echo(f"{job_id}: {error.message}", err=True)
                return False
        _print_json([record]) if as_json else click.echo(_line(record))
        return is_well(record)

    async def every(client: GatewayClient) -> bool:
        chosen = [record.job_id for record in await _collect(client, code)] if takes_all else job_ids
        if not chosen and not as_json:
            click.echo("no job has failed, of those that are kept")
        with raising_first_error():
            async with asyncio.TaskGroup() as tasks:
                done = [tasks.create_task(one(client, job_id)) for job_id in chosen]
        return all(task.result() for task in done)

    sys.exit(OK if asyncio.run(_with_client(where, every)) else SOME_FAILED)


Result = TypeVar("Result")


async def _with_client(where: dict[str, Any], call: Callable[[GatewayClient], Awaitable[Result]]) -> Result:
    async with GatewayClient.open(where["gateway"], patience_s=_PATIENCE_S, key=where["key"]) as client:
        await client.check()
        return await call(client)


async def _collect(client: GatewayClient, code: str | None, limit: int | None = None) -> list[JobRecord]:
    failed = client.jobs("failed", limit)
    return [record async for record in failed if code is None or (record.error and record.error.code == code)]


def _print_json(records: Iterable[JobRecord]) -> None:
    for record in records:
        click.echo(msgspec.json.encode(record).decode())


def _line(record: JobRecord) -> str:
    error = f": {record.error.code}: {record.error.message}" if record.error else ""
    return f"{record.job_id} {record.status}{error}"
