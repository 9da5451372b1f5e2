"""The vision service: loads the tower and what prompts need, then serves prepare requests."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from broker_pipeline.config import CommonSettings
from broker_pipeline.messages import WorkerRecord
from broker_pipeline.service import ServiceContext
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.codec import MAX_PAYLOAD_BYTES
from broker_pipeline.wire.transport import Transport
from stages.artifact import Artifact
from stages.compute.device import choose_device, choose_dtype, dtype_name
from stages.compute.loading import ComputeOptions, load_vision, vision_tensor_names
from stages.prompt.chat import PromptBuilder
from stages.prompt.images import ImageLimits
from stages.prompt.preprocess import PixelBudget
from stages.qwen3_vl.vision import VisionTower
from stages.vision.cache import VisionCache
from stages.vision.row_sender import RowSender
from stages.vision.session_preparer import SessionPreparer
from stages.vision.tower_batcher import TowerBatcher
from stages.vision.visual_encoder import PixelRules, VisualEncoder
from stages.vision.worker import VisionWorker
from stages.worker.compute_thread import ComputeThread
from stages.worker.presence import Presence, new_record
from stages.worker.service import close_thread, serve_worker, unless_stopped
from stages.worker.settings import VisionSettings

log = structlog.get_logger()

_IMAGE_RULES, _VIDEO_RULES = "preprocessor_config.json", "video_preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class LoadedVision:
    """The tower with its weights in place, and how prompts and pictures are treated."""

    tower: VisionTower
    prompts: PromptBuilder
    rules: PixelRules
    record: WorkerRecord


async def serve_vision(context: ServiceContext, settings: VisionSettings) -> None:
    """Run one vision worker until the service is stopped."""
    common = context.settings
    thread = ComputeThread()
    pool = ThreadPoolExecutor(settings.preprocess_threads, thread_name_prefix="preprocess")
    try:
        async with (
            Transport.open(
                common.nats_url, name=f"vision {settings.name}", max_message_bytes=MAX_PAYLOAD_BYTES
            ) as transport,
            open_redis(common.redis_url) as redis,
        ):
            loaded = await unless_stopped(context, thread.run(load, settings, common))
            if loaded is not None:
                presence = Presence(loaded[0].record)
                media = MediaStore(transport, None, common.namespace)
                worker = _assemble(loaded[0], settings, transport, media, thread, pool, presence)
                registry = WorkerRegistry(redis, common.namespace, common.pipeline)
                await serve_worker(context, transport, registry, presence, worker)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        close_thread(thread)


def load(settings: VisionSettings, common: CommonSettings) -> LoadedVision:
    """Open the artifact and load the tower, tokenizer and templates; runs on the compute thread.

    Raises:
        ConfigurationError: device or dtype are not possible.
        ArtifactError: the artifact, or a file that vision needs, is missing or wrong.
    """
    started = time.monotonic()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    artifact = Artifact.open(Path(settings.model))
    device, dtype = choose_device(settings.device), choose_dtype(settings.dtype, artifact.dtype)
    tensors = artifact.load(vision_tensor_names(artifact.config), device, dtype)
    tower = load_vision(artifact.config, tensors, ComputeOptions(str(device), dtype_name(dtype), settings.attention))
    prompts = PromptBuilder.from_directory(artifact.config, artifact.directory)
    record = new_record(
        "vision",
        settings.name,
        common,
        fingerprint=artifact.fingerprint,
        device=str(device),
        dtype=dtype_name(dtype),
    )
    log.info(
        "vision_loaded",
        worker=record.worker,
        num_weight_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        device=str(device),
        load_s=round(time.monotonic() - started, 3),
    )
    return LoadedVision(tower, prompts, read_pixel_rules(artifact, settings), record)


def read_pixel_rules(artifact: Artifact, settings: VisionSettings) -> PixelRules:
    """Read how the model wants its pictures, and videos where the artifact says so."""
    vision = artifact.config.vision
    video = None
    if artifact.has(_VIDEO_RULES):
        video = PixelBudget.from_json(artifact.path(_VIDEO_RULES).read_bytes(), vision, file=_VIDEO_RULES)
    return PixelRules(
        vision=vision,
        image=PixelBudget.from_json(artifact.path(_IMAGE_RULES).read_bytes(), vision, file=_IMAGE_RULES),
        video=video,
        limits=ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels),
    )


def _assemble(
    loaded: LoadedVision,
    settings: VisionSettings,
    transport: Transport,
    media: MediaStore,
    thread: ComputeThread,
    pool: ThreadPoolExecutor,
    presence: Presence,
) -> VisionWorker:
    batcher = TowerBatcher(loaded.tower, thread, settings.max_batch_patches)
    cache = VisionCache(settings.cache_bytes)
    encoder = VisualEncoder(media, batcher, cache, loaded.rules, pool, settings.max_pictures)
    merge = loaded.rules.vision.spatial_merge_size
    preparer = SessionPreparer(loaded.prompts, encoder, RowSender(transport), pool, merge)
    return VisionWorker(transport, preparer, batcher, thread, presence, settings.max_requests)
