"""What nobody needs any more goes away by itself."""

from __future__ import annotations

import asyncio

import aiohttp

from gateway.jobs.housekeeping import keep_house
from gateway.wiring import Gateway
from tests.gateway.api.native.test_jobs import accepted, form
from tests.kit.acting_conductor import ActingConductor


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
    house = asyncio.ensure_future(keep_house(gateway.store, gateway.media, gateway.retries, 0.05))
    async with asyncio.timeout(5.0):
        while True:
            left = await gateway.media.size_bytes()
            if left < stored:
                break
            await asyncio.sleep(0.05)
    house.cancel()
    assert 0 < left < stored  # the waiting job's image stays
    await conductor.run(await conductor.take(), lambda _, media: f"{len(media[0])} bytes")
