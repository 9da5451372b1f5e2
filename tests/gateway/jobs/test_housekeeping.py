"""What nobody needs any more goes away by itself."""

from __future__ import annotations

import asyncio

import aiohttp

from gateway.jobs.housekeeping import keep_house
from gateway.wiring import Gateway
from tests.gateway.api.native.test_jobs import accepted, form
from tests.kit.acting.conductor import ActingConductor
from tests.kit.waiting import eventually


async def test_images_of_finished_jobs_are_deleted(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    gateway, _ = running
    await accepted(http, data=form(jpeg))
    await accepted(http, data=form(jpeg + b"other"))
    stored = await gateway.media.size_bytes()
    await conductor.run(await conductor.take(), lambda *_: "done")
    sweep = gateway.media.sweep
    gateway.media.sweep = lambda: sweep(0.0)  # type: ignore[method-assign] # without the usual grace
    sweeps = {"media": gateway.media.sweep}
    house = asyncio.ensure_future(keep_house(sweeps, gateway.metrics.swept, 0.05))
    await eventually(lambda: b'broker_pipeline_swept_total{what="media"} 1.0' in gateway.metrics.text())
    house.cancel()
    assert 0 < await gateway.media.size_bytes() < stored  # the waiting job's image stays
    await conductor.run(await conductor.take(), lambda _, media: f"{len(media[0])} bytes")
