"""Puts routes together, serves them, and lets go of them in order.

stopping is set ──► listening ends ──► streams say goodbye, requests under way are finished ──► connections close
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
from aiohttp import web

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.heap import settle_heap
from broker_pipeline.service import ServiceContext
from gateway.api import health, page
from gateway.api.connections import AppRunner
from gateway.api.errors import answer_errors
from gateway.api.guard import add_headers, guard
from gateway.api.native import bulk, events, jobs, status, workers
from gateway.api.observe import observe
from gateway.api.openai import models
from gateway.api.openai.batch import batches, files
from gateway.api.openai.batch.endpoints import ENDPOINTS
from gateway.api.openai.chat import route as chat
from gateway.api.openai.responses import route as responses
from gateway.api.pipeline_status import read_status
from gateway.batches.answers import Answers
from gateway.batches.batch_run import RunParts
from gateway.batches.batch_runner import SLICE_S, BatchRunner
from gateway.batches.line_room import LineRoom
from gateway.batches.picture_retries import PictureRetries
from gateway.batches.webhooks.end_teller import EndTeller
from gateway.jobs.housekeeping import keep_house
from gateway.jobs.lost_jobs import LostJobs
from gateway.settings import GatewaySettings
from gateway.wiring import GATEWAY, Gateway, open_gateway

_KEEPALIVE_S = 75.0
_CLOSE_S = 0.5

log = structlog.get_logger()


def all_routes() -> list[web.RouteDef]:
    """Return every route of the gateway."""
    rooms = (jobs, bulk, events, status, workers, models, chat, responses, files, batches, health, page)
    return [route for api in rooms for route in api.routes()]


def build_app(gateway: Gateway) -> web.Application:
    """Make the application around a gateway's parts."""
    middlewares = [observe, answer_errors, guard]
    app = web.Application(middlewares=middlewares, client_max_size=gateway.settings.limits.max_body_bytes)
    app.on_response_prepare.append(add_headers)
    app[GATEWAY] = gateway
    app.add_routes(all_routes())
    return app


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[str]:
    """Listen while the context is open and yield the URL; at the end, requests under way are finished."""
    settings = gateway.settings
    runner = AppRunner(
        build_app(gateway),
        access_log=None,
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=_CLOSE_S,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, reuse_port=settings.shares_port or None)
        await _start(site, settings)
        yield url_of(*runner.addresses[0][:2])
        await site.stop()
        if not await gateway.in_flight.drained(max(0.0, settings.common.drain_s - 2 * _CLOSE_S)):
            log.warning("requests_cut_short", num_requests=gateway.in_flight.num_requests)
    finally:
        await runner.cleanup()


async def serve(context: ServiceContext, settings: GatewaySettings) -> None:
    """Run the gateway until it is asked to stop."""
    async with open_gateway(settings, context.stopping) as gateway:
        settle_heap()
        async with serving(gateway) as url:
            context.ready(url=url)
            await _until_stopped(gateway)


async def _until_stopped(gateway: Gateway) -> None:
    """Wait for the request to stop; raises `TransportError` when the broker is lost for good."""
    async with asyncio.TaskGroup() as group:
        colocated = (
            group.create_task(gateway.transport.wait_failed()),
            group.create_task(batch_runner(gateway).run()),
            group.create_task(gateway.rate_history.keep(partial(read_status, gateway))),
            *([group.create_task(EndTeller(gateway.batches, gateway.webhooks).run())] if gateway.webhooks else ()),
            *([group.create_task(_keep_house(gateway))] if gateway.settings.keeps_house else ()),
        )
        await gateway.stopping.wait()
        for task in colocated:
            task.cancel()


def batch_runner(gateway: Gateway, slice_s: float = SLICE_S) -> BatchRunner:
    """Return what carries batches on, with a gateway's parts; see `BatchRunner`."""
    answers = Answers(
        jobs=gateway.jobs,
        store=gateway.store,
        retries=gateway.retries,
        watch=gateway.watch,
        room=LineRoom(gateway.pictures, gateway.queue, gateway.media, gateway.limits.own.max_body_bytes),
        pictures=PictureRetries(gateway.down_hosts),
        limits=gateway.limits,
        endpoints=ENDPOINTS,
    )
    parts = RunParts(gateway.batches, gateway.files, answers, gateway.rates, gateway.settings.batches)
    return BatchRunner(parts, gateway.batch_called, slice_s=slice_s)


async def _keep_house(gateway: Gateway) -> None:
    lost = LostJobs(gateway.store, gateway.publisher)
    sweeps = {
        "media": gateway.media.sweep,
        "jobs": gateway.store.sweep,
        "files": gateway.files.sweep,
        "lost": lost.publish,
    }
    await keep_house(sweeps, gateway.metrics.swept)


async def _start(site: web.TCPSite, settings: GatewaySettings) -> None:
    try:
        await site.start()
    except OSError as error:
        raise cannot_listen(settings.host, settings.port, error) from error


def cannot_listen(host: str, port: int, error: OSError) -> ConfigurationError:
    """Build the error of an address that cannot be had."""
    said = f"cannot listen on {host}:{port}: {error.strerror or error}; another --port, or 0?"
    return ConfigurationError(said, field="port")


def url_of(host: str, port: int) -> str:
    """Return the URL of an address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
