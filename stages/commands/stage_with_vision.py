"""A stage and a vision worker in one process, on one device: visual rows pass between them without leaving it.

    compute thread of vision    load tower ─► wait ─────────────► launch batches ─┐ visual rows, on the device
    compute thread of stage     wait ─► load blocks, room for KV ─► steps ◄ visual row buffer ◄┘
                                        alongside the tower's needs

They load one after the other, so that the stage knows what is left of the GPU, and captures its decode steps while
nothing else uses it. Each has a name, a record and a life of its own; either one's failure ends the process.
"""

from __future__ import annotations

import asyncio

from broker_pipeline import subjects
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.service import ServiceContext
from stages.stage.service import serve_stage
from stages.stage.visual_row_intake import VisualRowIntake
from stages.vision.service import ColocatedStage, serve_vision
from stages.vision.visual_row_sender import LocalStage
from stages.worker.roles import Roles
from stages.worker.service import unless_stopped
from stages.worker.settings import StageSettings, VisionSettings


async def serve_stage_with_vision(context: ServiceContext, settings: StageSettings, vision: VisionSettings) -> None:
    """Run a stage and a vision worker until the service is stopped.

    Raises (in a group):
        PipelineError: either failed.
    """
    colocated, roles = ColocatedStage(), Roles(context, ("stage", "vision"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_vision(roles.part("vision"), vision, colocated), name="vision")
        tasks.create_task(_serve_stage(roles.part("stage"), settings, colocated), name="stage")


async def _serve_stage(context: ServiceContext, settings: StageSettings, colocated: ColocatedStage) -> None:
    loaded = await unless_stopped(context, asyncio.shield(colocated.tower_loaded))
    if loaded is None:
        return

    def meet(record: WorkerRecord, intake: VisualRowIntake) -> None:
        colocated.stage.set_result(LocalStage(subjects.rows(record.subject), intake))

    await serve_stage(context, settings, vision_bytes=loaded[0], on_loaded=meet)
