"""The vision service: loads the tower and what prompts need, then serves prepare requests.

It has a process of its own, or shares one with a stage (`stages.commands.stage_with_vision`), which
then gets its visual rows without a broker between them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.pictures.rule import PictureRule, check_bounds
from broker_pipeline.planning.devices import CACHE_BYTES, CACHE_SHARE
from broker_pipeline.process.memory_limit import require_left
from broker_pipeline.security.credentials import load_credentials
from broker_pipeline.service import ServiceContext
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.storage.media_roots import MediaRoots
from broker_pipeline.wire.codec import MAX_PAYLOAD_BYTES
from broker_pipeline.wire.transport import Transport
from stages.artifact import Artifact
from stages.compute.fused.captured_tower import capture_tower
from stages.compute.loading import load_vision, vision_tensor_names
from stages.compute.options import ComputeOptions
from stages.device.choice import choose_device, choose_dtype, dtype_name
from stages.device.hardware import at_most_share, device_identity, device_slots, limit_memory, use_threads
from stages.prompt.chat import PromptBuilder
from stages.prompt.pixel_budgets import read_pixel_budgets
from stages.qwen3_vl.tensors import num_values
from stages.qwen3_vl.vision import TowerEncoder, VisionTower
from stages.vision.cache import VisionCache
from stages.vision.decoding import PixelRules
from stages.vision.device_bytes import vision_device_bytes
from stages.vision.session_preparer import SessionPreparer
from stages.vision.tower_batcher import BatchLimits, TowerBatcher
from stages.vision.tower_lane import TowerLane
from stages.vision.visual_encoder import VisualEncoder
from stages.vision.visual_row_sender import LocalStage, VisualRowSender
from stages.vision.work_pools import MOST_SHORT_THREADS, WorkPools
from stages.vision.worker import VisionWorker
from stages.worker.compute_thread import ComputeThread
from stages.worker.edges import edge_settings
from stages.worker.presence import Presence, new_record
from stages.worker.service import close_thread, serve_worker, unless_stopped
from stages.worker.settings import VisionSettings

log = structlog.get_logger()

_FEWEST_THREADS, _MOST_THREADS = 2, 8


@dataclass(frozen=True, slots=True)
class LoadedVision:
    """The tower with its weights in place, and how prompts and pictures are treated.

    `device_bytes` is what it may still take of its GPU, encoded pictures that are kept there included.
    """

    tower: TowerEncoder
    prompts: PromptBuilder
    rules: PixelRules
    record: WorkerRecord
    device_bytes: int
    cache_bytes: int


class ColocatedStage:
    """What the vision worker and the stage of one process wait for: to load one after the other, and to be joined."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.tower_loaded: asyncio.Future[int] = loop.create_future()
        """The bytes of the GPU that a stage has to leave free."""
        self.stage: asyncio.Future[LocalStage] = loop.create_future()


@dataclass(frozen=True, slots=True)
class VisionThreads:
    """Where a vision worker computes: batches are launched, awaited, and pictures are decoded."""

    launching: ComputeThread
    finishing: ComputeThread
    pools: WorkPools


async def serve_vision(
    context: ServiceContext, settings: VisionSettings, colocated: ColocatedStage | None = None
) -> None:
    """Run one vision worker until the service is stopped; `colocated` where a stage shares its process."""
    common = context.settings
    credentials = load_credentials(common.secrets, "vision", common.namespace)
    with _threads(settings) as threads:
        async with (
            Transport.open(
                common.nats_url,
                name=f"vision {settings.name}",
                max_message_bytes=MAX_PAYLOAD_BYTES,
                credentials=credentials,
            ) as transport,
            open_redis(common.redis_url, credentials=credentials) as redis,
        ):
            loaded = await unless_stopped(context, threads.launching.run(load, settings, common))
            if loaded is None:
                return
            local = await _meet_stage(context, loaded[0], colocated) if colocated is not None else None
            if colocated is not None and local is None:
                return
            presence = Presence(loaded[0].record, credentials.tls if credentials else None)
            media = MediaStore(transport, None, common.namespace, roots=_media_roots(common, loaded[0].rules.pictures))
            worker = _assemble(loaded[0], settings, transport, media, threads, presence, local)
            registry = WorkerRegistry(redis, common.namespace, common.pipeline)
            edges = edge_settings(settings, loaded[0].tower.device, credentials)
            async with transport.use_edges(loaded[0].record.subject, edges):
                await serve_worker(context, transport, registry, presence, worker)


def _media_roots(common: CommonSettings, rule: PictureRule) -> MediaRoots:
    roots = MediaRoots(common.media_roots, max(rule.max_bytes, rule.max_video_bytes))
    roots.check()
    return roots


def default_preprocess_threads() -> int:
    """Return half of the cores that this process may use: decoding scales with them, and others need some."""
    return min(_MOST_THREADS, max(_FEWEST_THREADS, len(os.sched_getaffinity(0)) // 2))


def load(settings: VisionSettings, common: CommonSettings) -> LoadedVision:
    """Open the artifact and load the tower, tokenizer and templates; runs on the compute thread.

    Raises:
        ConfigurationError: device or dtype are not possible.
        ArtifactError: the artifact, or a file that vision needs, is missing or wrong.
    """
    started = time.monotonic()
    device = choose_device(settings.device)
    limit_memory(device, settings.gpu_memory_gb)
    use_threads(settings.threads, device)
    artifact = Artifact.open(Path(settings.model))
    dtype = choose_dtype(settings.dtype, artifact.dtype)
    names = vision_tensor_names(artifact.config)
    if device.type == "cpu":
        require_left(num_values(names) * dtype.itemsize, "the weights of the vision tower")
    tensors = artifact.load(names, device, dtype, verify=settings.verify_weights)
    options = ComputeOptions(str(device), dtype_name(dtype), settings.attention, fp8_tower=settings.fp8_tower)
    num_weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
    loaded = load_vision(artifact.config, tensors, options)
    del tensors  # graphs are captured where those were that have been quantised
    tower = _captured(loaded, settings)
    prompts = PromptBuilder.from_directory(artifact.config, artifact.directory)
    rules = read_pixel_rules(artifact, settings)
    record = new_record(
        "vision",
        settings.name,
        common,
        fingerprint=artifact.fingerprint,
        device=str(device),
        dtype=dtype_name(dtype),
        pictures=rules.pictures,
        device_id=device_identity(device),
        device_slots=device_slots(device),
    )
    cache_bytes = settings.cache_bytes
    if cache_bytes is None:
        cache_bytes = at_most_share(CACHE_BYTES, CACHE_SHARE, device)
    need = vision_device_bytes(artifact.config, dtype, rules.image, settings.max_batch_patches)
    log.info(
        "vision_loaded",
        worker=record.worker,
        num_weight_bytes=num_weight_bytes,
        device=str(device),
        load_s=round(time.monotonic() - started, 3),
    )
    return LoadedVision(tower, prompts, rules, record, need + cache_bytes, cache_bytes)


def _captured(tower: VisionTower, settings: VisionSettings) -> TowerEncoder:
    """Give the tower its graphs."""
    try:
        return capture_tower(tower, settings.max_batch_patches, is_invariant=settings.deterministic is not False)
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"the tower's largest batch does not fit onto {tower.device}: {error}; give it less of --max-batch-patches",
            field="max_batch_patches",
        ) from error


def read_pixel_rules(artifact: Artifact, settings: VisionSettings) -> PixelRules:
    """Read how the model wants its pictures, and videos where the artifact says so."""
    image, video = read_pixel_budgets(artifact.directory, artifact.config.vision)
    image = image.with_bounds(settings.min_pixels, settings.max_pixels)
    check_bounds(image.min_pixels, image.max_pixels, None, "min_pixels")
    return PixelRules(
        vision=artifact.config.vision,
        image=image,
        video=video,
        pictures=PictureRule(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_video_bytes=settings.max_video_bytes,
            max_video_s=settings.max_video_s,
            max_resized_pixels=image.max_pixels,
            max_resized_video_pixels=video.max_pixels if video is not None else None,
        ),
        background=settings.background,
        max_video_decode_s=settings.max_video_decode_s,
    )


@contextmanager
def _threads(settings: VisionSettings) -> Iterator[VisionThreads]:
    launching, finishing = ComputeThread("vision"), ComputeThread("vision-finish")
    num_wide = settings.preprocess_threads or default_preprocess_threads()
    short, wide = _pool("preprocess", min(MOST_SHORT_THREADS, num_wide)), _pool("large", num_wide)
    long = _pool("long", 1)
    try:
        yield VisionThreads(launching, finishing, WorkPools(short=short, wide=wide, long=long))
    finally:
        for each in (short, wide, long):
            each.shutdown(wait=False, cancel_futures=True)
        close_thread(launching)
        close_thread(finishing)


def _pool(name: str, num_threads: int) -> ThreadPoolExecutor:
    """Return threads that compute with one thread each, as there are enough of them."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(1,))


async def _meet_stage(context: ServiceContext, loaded: LoadedVision, colocated: ColocatedStage) -> LocalStage | None:
    """Let the stage load and wait for it; None when the service is stopped first."""
    colocated.tower_loaded.set_result(loaded.device_bytes)
    met = await unless_stopped(context, asyncio.shield(colocated.stage))
    return met[0] if met is not None else None


def _assemble(
    loaded: LoadedVision,
    settings: VisionSettings,
    transport: Transport,
    media: MediaStore,
    threads: VisionThreads,
    presence: Presence,
    local: LocalStage | None,
) -> VisionWorker:
    lane = TowerLane(loaded.tower, keeps_on_device=local is not None and local.intake.takes_any)
    is_single = settings.deterministic is True and isinstance(loaded.tower, VisionTower)  # which has no graphs
    limits = BatchLimits(settings.max_batch_patches, max_pictures=1 if is_single else None)
    batcher = TowerBatcher(lane, limits, threads.launching, threads.finishing)
    cache = VisionCache(loaded.cache_bytes)
    encoder = VisualEncoder(media, batcher, cache, loaded.rules, threads.pools, settings.max_pictures)
    sender = VisualRowSender(transport, batcher.to_host, local)
    preparer = SessionPreparer(loaded.prompts, encoder, sender, threads.pools, loaded.rules.vision.spatial_merge_size)
    return VisionWorker(transport, preparer, batcher, cache, presence, settings.max_requests)
