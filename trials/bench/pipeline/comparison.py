"""The whole system against the same computation in one process, with the same work on the same cores.

CPU    one process ─ round 0            round 1           …     in turns, so that what disturbs one disturbs
       system                 round 0           round 1   …     the other
GPU    one process, all rounds; it ends and frees the GPU; then the system, all rounds
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import msgspec

from broker_pipeline.errors import PipelineError
from broker_pipeline.tools.local.gpus.devices import cuda_devices
from broker_pipeline.tools.local.gpus.mps import mps_service
from broker_pipeline.tools.local.plan import LocalSettings
from trials.bench.options import say
from trials.bench.pipeline.baseline import Baseline
from trials.bench.pipeline.row import PipelineRow, Prediction, row_of
from trials.bench.pipeline.settings import PipelineSettings
from trials.bench.pipeline.system_rounds import RunningSystem
from trials.bench.work import Round, Rounds


async def measure_pipeline(
    settings: PipelineSettings, model: Path, directory: Path
) -> AsyncGenerator[PipelineRow, None]:
    """Do the work in one process and through pipelines; yield a row for each as soon as it is known.

    Raises the first error of a system only after the others have had their turn.
    """
    rounds = await asyncio.to_thread(settings.draw, directory / "pictures")
    baseline = Baseline(settings, rounds, model, directory)
    if settings.with_in_process and not baseline.takes_turns:
        await baseline.run_alone()
        for row in baseline.rows():
            yield row
    gpus = await cuda_devices() if settings.device != "cpu" else ()
    failed: PipelineError | None = None
    async with AsyncExitStack() as stack:
        worker_env = await stack.enter_async_context(mps_service(directory / "mps")) if settings.mps else {}
        await stack.enter_async_context(baseline.colocated())
        for system in list(settings.systems(model, directory, rounds, gpus)):
            say(system.name)
            local = replace(system.local, worker_env=worker_env)
            try:
                row = await _measure_system(system.name, local, rounds, baseline)
            except PipelineError as error:
                say(f"{system.name}: failed; {error.message.partition(chr(10))[0]}")
                failed = failed or error
            else:
                say(f"{system.name}: up after {row.start_s:.1f} s, warm after another {row.warm_up_s:.1f} s")
                if settings.predict:
                    found = settings.forecast(model, system.layout, row.num_prompt_tokens, gpus)
                    row = msgspec.structs.replace(row, predicted=Prediction.of(system.layout, found))
                yield row
    if baseline.takes_turns:
        for row in baseline.rows():
            yield row
    if failed is not None:
        raise failed


async def _measure_system(name: str, local: LocalSettings, rounds: Rounds, baseline: Baseline) -> PipelineRow:
    """Time a system's rounds, each alongside the best that one process reached right before it."""
    done: list[Round] = []
    bests: list[float] = []
    began = time.monotonic()
    async with RunningSystem.open(local, Path(rounds.pictures)) as system:
        start_s = time.monotonic() - began
        warm_up_s = (await system.run(rounds.warm_up)).seconds
        for work in rounds.timed:
            if (best := await baseline.turn()) is not None:
                bests.append(best)
            done.append(await system.run(work))
    row = row_of(name, done, median(bests) if bests else None)
    return msgspec.structs.replace(row, start_s=start_s, warm_up_s=warm_up_s)
