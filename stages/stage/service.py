"""The stage service: loads its blocks, then serves them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from broker_pipeline import subjects
from broker_pipeline.artifact_files.block_range import parse_block_range
from broker_pipeline.config import CommonSettings
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.planning.devices import ROW_BUFFER_BYTES, ROW_BUFFER_SHARE
from broker_pipeline.planning.workload import MAX_STEP_TOKENS, most_step_tokens
from broker_pipeline.process.memory_limit import require_left
from broker_pipeline.security.credentials import load_credentials
from broker_pipeline.service import ServiceContext
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.wire.codec import MAX_PAYLOAD_BYTES
from broker_pipeline.wire.transport import Transport
from stages.artifact import Artifact
from stages.compute.grammar.grammars import Grammars
from stages.compute.kv.capacity import KVRoom, kv_token_bytes
from stages.compute.loading import is_fused, load_stage, stage_tensor_names
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.device.choice import choose_device, choose_dtype, dtype_name
from stages.device.hardware import (
    at_most_share,
    device_identity,
    device_slots,
    gpu_memory,
    limit_memory,
    use_own_stream,
    use_threads,
)
from stages.qwen3_vl.tensors import num_values
from stages.stage.engine import StageEngine
from stages.stage.envelope_checks import StageFacts
from stages.stage.visual_row_intake import VisualRowIntake
from stages.stage.worker import StageLimits, StageWorker
from stages.worker.compute_thread import ComputeThread
from stages.worker.edges import edge_settings
from stages.worker.epoch_fence import EpochFence
from stages.worker.presence import Presence, new_record
from stages.worker.service import close_thread, serve_worker, unless_stopped
from stages.worker.settings import StageSettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage with its weights and KV in place."""

    compute: StageCompute
    visual_rows: VisualRowBuffer
    record: WorkerRecord


async def serve_stage(
    context: ServiceContext,
    settings: StageSettings,
    *,
    vision_bytes: int = 0,
    on_loaded: Callable[[WorkerRecord, VisualRowIntake], None] = lambda *_: None,
) -> None:
    """Run one stage worker until the service is stopped.

    `vision_bytes` of a GPU are left to this process's vision worker; `on_loaded` tells it where visual rows are taken.
    """
    common = context.settings
    credentials = load_credentials(common.secrets, "stage", common.namespace)
    thread, collector = ComputeThread(), ComputeThread("collect")
    try:
        async with (
            Transport.open(
                common.nats_url,
                name=f"stage {settings.name or settings.blocks}",
                max_message_bytes=MAX_PAYLOAD_BYTES,
                credentials=credentials,
            ) as transport,
            open_redis(common.redis_url, credentials=credentials) as redis,
        ):
            loaded = await unless_stopped(context, thread.run(load, settings, common, vision_bytes))
            if loaded is not None:
                presence = Presence(loaded[0].record, credentials.tls if credentials else None)
                worker, intake = _assemble(loaded[0], settings, transport, presence, (thread, collector))
                on_loaded(loaded[0].record, intake)
                registry = WorkerRegistry(redis, common.namespace, common.pipeline)
                async with transport.use_edges(
                    loaded[0].record.subject, edge_settings(settings, loaded[0].compute.device, credentials)
                ):
                    await serve_worker(context, transport, registry, presence, worker)
    finally:
        close_thread(thread)
        close_thread(collector)


def load(settings: StageSettings, common: CommonSettings, vision_bytes: int = 0) -> LoadedStage:
    """Open the artifact and load this stage's part of it; runs on the compute thread.

    KV leaves `vision_bytes` of a GPU free for this process's vision worker, and room for the rows that it leaves there.

    Raises:
        ConfigurationError: blocks, device, dtype or KV room are not possible.
        ArtifactError: the artifact, or a file of these blocks, is missing or wrong.
    """
    started = time.monotonic()
    device = choose_device(settings.device)
    limit_memory(device, settings.gpu_memory_gb)
    use_threads(settings.threads, device)
    artifact = Artifact.open(Path(settings.model))
    blocks = parse_block_range(settings.blocks, artifact.config.text.num_layers)
    dtype = choose_dtype(settings.dtype, artifact.dtype)
    use_own_stream(device)
    names = stage_tensor_names(artifact.config, blocks.start, blocks.stop)
    row_bytes = settings.row_buffer_bytes or at_most_share(ROW_BUFFER_BYTES, ROW_BUFFER_SHARE, device)
    visual_rows = VisualRowBuffer(row_bytes, settings.row_ttl_s)
    room = KVRoom(settings.kv_tokens, settings.kv_share, vision_bytes + row_bytes if vision_bytes else 0)
    options = _compute_options(settings, device, dtype)
    if device.type == "cpu":
        token_bytes = kv_token_bytes(artifact.config.text, len(blocks), dtype, in_fp8=options.kv_in_fp8)
        kv_bytes = room.least_tokens() * token_bytes
        require_left(
            num_values(names) * dtype.itemsize + kv_bytes, f"the weights of blocks {settings.blocks}, and their KV,"
        )
    grammars = Grammars(Path(settings.model), artifact.config.text.vocab_size)
    with artifact.reading(names, device, dtype, verify=settings.verify_weights) as tensors:
        compute = load_stage(
            artifact.config,
            blocks,
            tensors,
            kv_capacity_tokens=room,
            options=options,
            visual_rows=visual_rows,
            grammars=grammars,
        )
    if compute.is_last:
        grammars.load()
    record = _record(settings, common, artifact, compute)
    log.info(
        "stage_loaded",
        worker=record.worker,
        blocks=f"{blocks.start}:{blocks.stop}",
        num_weight_bytes=tensors.num_bytes,
        kv_tokens=compute.kv.capacity_tokens,
        kv_dtype=settings.kv_dtype,
        device=str(device),
        load_s=round(time.monotonic() - started, 3),
    )
    return LoadedStage(compute, visual_rows, record)


def _max_batch_tokens(settings: StageSettings, device: torch.device) -> int:
    if settings.max_batch_tokens is not None:
        return settings.max_batch_tokens
    return most_step_tokens(gpu_memory(device)[1]) if device.type == "cuda" else MAX_STEP_TOKENS


def _compute_options(settings: StageSettings, device: torch.device, dtype: torch.dtype) -> ComputeOptions:
    return ComputeOptions(
        str(device),
        dtype_name(dtype),
        settings.attention,
        kv_dtype=settings.kv_dtype,
        is_deterministic=settings.deterministic,
        max_batch_tokens=_max_batch_tokens(settings, device),
        max_step_sessions=settings.max_step_sessions,
    )


def _record(settings: StageSettings, common: CommonSettings, artifact: Artifact, compute: StageCompute) -> WorkerRecord:
    return new_record(
        "stage",
        settings.name or f"stage-{compute.blocks.start}-{compute.blocks.stop}",
        common,
        fingerprint=artifact.fingerprint,
        device=str(compute.device),
        dtype=dtype_name(compute.dtype),
        blocks=compute.blocks,
        share=settings.share,
        num_layers=artifact.config.text.num_layers,
        kv_capacity_tokens=compute.kv.capacity_tokens,
        max_batch_tokens=_max_batch_tokens(settings, compute.device),
        device_id=device_identity(compute.device),
        device_slots=device_slots(compute.device),
        max_step_sessions=_most_step_sessions(settings, compute),
        copies_prefixes=True,
        verifies_drafts=True,
        keeps_prefixes=True,
    )


def _assemble(
    loaded: LoadedStage,
    settings: StageSettings,
    transport: Transport,
    presence: Presence,
    threads: tuple[ComputeThread, ComputeThread],
) -> tuple[StageWorker, VisualRowIntake]:
    compute, fence, (thread, collector) = loaded.compute, EpochFence(), threads
    facts = _facts(compute, loaded.record)
    engine = StageEngine(compute, facts, fence, loaded.visual_rows, place=transport.place)
    is_cuda = compute.device.type == "cuda"
    intake = VisualRowIntake(facts, compute.visual_row_needs, loaded.visual_rows, fence, is_pinned=is_cuda)
    limits = StageLimits(max_envelopes=settings.max_envelopes)
    waits = collector if is_cuda else None
    return StageWorker(transport, engine, thread, intake, fence, presence, limits, waits), intake


def _most_step_sessions(settings: StageSettings, compute: StageCompute) -> int:
    options = _compute_options(settings, compute.device, compute.dtype)
    return settings.max_step_sessions if is_fused(options, compute.dtype, compute.device) else 0


def _facts(compute: StageCompute, record: WorkerRecord) -> StageFacts:
    return StageFacts(
        worker=record.worker,
        pipeline=record.pipeline,
        fingerprint=record.fingerprint,
        subject=subjects.work(record.subject),
        is_first=compute.is_first,
        is_last=compute.is_last,
        hidden_size=compute.config.text.hidden_size,
        vocab_size=compute.config.text.vocab_size,
        dtype=compute.dtype,
        max_batch_tokens=record.max_batch_tokens,
    )
