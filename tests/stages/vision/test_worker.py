"""A vision worker on a real broker and media store, with stages that only take rows."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image

from broker_pipeline import subjects
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import InvalidRequestError, StageError, TransportError, WorkerBusyError
from broker_pipeline.messages.jobs import (
    ChatMessage,
    ImagePart,
    MediaRef,
    PixelBounds,
    TextPart,
    VideoFilePart,
    VideoPart,
)
from broker_pipeline.messages.vision import (
    PrepareCancel,
    PreparedSession,
    PrepareRequest,
    RowDelivery,
    RowReceipt,
    RowTarget,
)
from broker_pipeline.messages.workers import Heartbeat
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Received, Transport
from stages.prompt.chat import VisualInput
from stages.prompt.images import decode_image
from stages.prompt.preprocess import PixelBudget
from stages.prompt.visual_frames import image_frames
from stages.qwen3_vl.positions import plan_positions
from stages.vision.service import LoadedVision, VisionThreads, _assemble, load
from stages.vision.work_pools import WorkPools
from stages.worker.compute_thread import ComputeThread
from stages.worker.presence import Presence
from stages.worker.settings import VisionSettings
from stages.worker.tensors import from_wire
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.pictures import picture, truncated_jpeg
from tests.kit.viewing.seen import encoded
from tests.kit.viewing.videos import clip
from tests.kit.waiting import eventually

NUM_HOSTILE = 4
Part = TextPart | ImagePart | VideoPart


class Bench:
    """One vision worker, two row targets, and a conductor's end of the conversation."""

    def __init__(
        self, transport: Transport, media: MediaStore, loaded: LoadedVision, heartbeat: Callable[[], Heartbeat]
    ) -> None:
        self.transport = transport
        self.media = media
        self.loaded = loaded
        self.heartbeat = heartbeat
        self.deliveries: dict[str, list[Received[RowDelivery]]] = {"first": [], "second": []}
        self.refusals: list[StageError] = []
        self.targets = (
            RowTarget(subject=self._subject("first"), embeds=True, levels=(0,)),
            RowTarget(subject=self._subject("second"), levels=(1, 2)),
        )

    def _subject(self, name: str) -> str:
        return f"{self.loaded.record.subject}.{name}"

    async def keep_rows(self, name: str, subscribed: asyncio.Event) -> None:
        async with self.transport.subscribe(self._subject(name), RowDelivery) as messages:
            subscribed.set()
            async for message in messages:
                receipt = RowReceipt(session=message.body.session, attempt=message.body.attempt)
                if self.refusals:
                    receipt = msgspec.structs.replace(receipt, failure=self.refusals.pop().to_failure())
                else:
                    self.deliveries[name].append(message)
                await message.respond(receipt)

    async def store(self, content: bytes) -> MediaRef:
        return await self.media.put(content, "job")

    async def prepare(self, *parts: Part, **changes: Any) -> Received[PreparedSession]:
        record = self.loaded.record
        request = PrepareRequest(
            pipeline=record.pipeline,
            fingerprint=record.fingerprint,
            epoch=1,
            session="s",
            attempt=1,
            messages=(ChatMessage(role="user", content=parts),),
            targets=self.targets,
            max_prompt_tokens=2000,
            budget_s=20.0,
        )
        request = msgspec.structs.replace(request, **changes)
        return await self.transport.request(
            subjects.work(record.subject), request, reply_type=PreparedSession, timeout_s=20
        )

    async def failure(self, *parts: Part, **changes: Any) -> tuple[str, str | None]:
        answer = await self.prepare(*parts, **changes)
        assert answer.body.failure is not None, answer.body
        return answer.body.failure.code, answer.body.failure.field

    def rows(self, name: str, tensor: str) -> torch.Tensor:
        wire = self.deliveries[name][-1].tensors[tensor]
        return from_wire(tensor, wire, dtype=torch.float32, shape=(None, 64))


@pytest.fixture(scope="module")
def settings() -> VisionSettings:
    return VisionSettings(model=str(tiny_artifact()), device="cpu", max_requests=5)


@asynccontextmanager
async def _bench(
    transport: Transport, redis: RedisClient, namespace: str, settings: VisionSettings
) -> AsyncIterator[Bench]:
    loaded = load(settings, CommonSettings(namespace=namespace))
    media = MediaStore(transport, redis, namespace, max_bytes=2**26)
    await media.ensure()
    pools = WorkPools(short=ThreadPoolExecutor(2), wide=ThreadPoolExecutor(2), long=ThreadPoolExecutor(1))
    threads = VisionThreads(ComputeThread(), ComputeThread(), pools)
    reader = MediaStore(transport, None, namespace)
    worker = _assemble(loaded, settings, transport, reader, threads, Presence(loaded.record), None)
    bench = Bench(transport, media, loaded, worker.heartbeat)
    async with asyncio.TaskGroup() as tasks:
        running = []
        for work in (worker.serve, *(lambda e, n=name: bench.keep_rows(n, e) for name in bench.deliveries)):
            subscribed = asyncio.Event()
            running.append(tasks.create_task(work(subscribed)))
            await subscribed.wait()
        yield bench
        await asyncio.wait_for(worker.wait_idle(), 5)
        for task in running:
            task.cancel()
    for pool in (pools.short, pools.wide, pools.long):
        pool.shutdown()
    threads.launching.close()
    threads.finishing.close()


@pytest.fixture
async def bench(
    transport: Transport, redis: RedisClient, namespace: str, settings: VisionSettings
) -> AsyncIterator[Bench]:
    async with _bench(transport, redis, namespace, settings) as ready:
        yield ready


def decoded(bench: Bench, answer: Received[PreparedSession]) -> str:
    return bench.loaded.prompts._tokenizer.decode(answer.tensors["token_ids"].to_numpy().tolist())


def text(content: str = "What is it?") -> TextPart:
    return TextPart(text=content)


def test_the_rule_for_pictures_is_announced(settings: VisionSettings) -> None:
    loaded = load(msgspec.structs.replace(settings, max_image_pixels=1234), CommonSettings())
    assert loaded.record.pictures == loaded.rules.pictures
    assert loaded.record.pictures.max_pixels == 1234


async def test_what_is_transparent_shows_the_background_that_was_chosen(
    transport: Transport, redis: RedisClient, namespace: str, settings: VisionSettings
) -> None:
    clear = encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 0)), "PNG")
    green = encoded(Image.new("RGB", (64, 64), (10, 200, 30)), "PNG")
    chosen = msgspec.structs.replace(settings, background=(10, 200, 30))
    async with _bench(transport, redis, namespace, chosen) as bench:
        for content in (clear, green):
            answer = await bench.prepare(ImagePart(media=await bench.store(content)))
            assert answer.body.failure is None
        first, second = (delivery.tensors["embeds"] for delivery in bench.deliveries["first"])
        assert first.to_numpy().tobytes() == second.to_numpy().tobytes()


async def test_a_prompt_with_pictures_becomes_tokens_positions_and_rows(bench: Bench) -> None:
    contents = [picture(1), picture(2, 64, 160)]
    refs = [await bench.store(content) for content in contents]
    answer = await bench.prepare(ImagePart(media=refs[0]), text(), ImagePart(media=refs[1]))
    assert answer.body.failure is None

    rules, tower = bench.loaded.rules, bench.loaded.tower
    patches = [image_frames(decode_image(content), rules.vision, rules.image).to_patches() for content in contents]
    expected = tower.encode(torch.cat([p.rows for p in patches]), [p.grid for p in patches])
    torch.testing.assert_close(bench.rows("first", "embeds"), expected.embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bench.rows("first", "deepstack.0"), expected.levels[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bench.rows("second", "deepstack.2"), expected.levels[2], rtol=1e-4, atol=1e-4)
    assert set(bench.deliveries["second"][0].tensors) == {"deepstack.1", "deepstack.2"}

    prompts = bench.loaded.prompts
    message = ChatMessage(role="user", content=(ImagePart(media=refs[0]), text(), ImagePart(media=refs[1])))
    prompt = prompts.build([message], [VisualInput("image", p.grid) for p in patches])
    plan = plan_positions(len(prompt.token_ids), prompt.groups)
    assert answer.tensors["token_ids"].to_numpy().tolist() == list(prompt.token_ids)
    assert answer.tensors["positions"].to_numpy().tolist() == plan.positions.tolist()
    assert (answer.body.num_tokens, answer.body.position_delta) == (len(prompt.token_ids), plan.delta)
    assert [(span.offset, span.count, span.row) for span in answer.body.visual] == [
        (group.start, group.count, group.visual_row) for group in prompt.groups
    ]


async def test_a_job_says_how_large_its_pictures_become(bench: Bench) -> None:
    """At most what the worker has memory for; and what was encoded at another size is not given again."""
    media = await bench.store(picture(9, 256, 192))
    bounds = {48: (None, None), 12: (None, 12 * 1024), 4: (1, 6 * 1024)}
    for num_tokens, (least, most) in bounds.items():
        wanted = PixelBounds(min_pixels=least, max_pixels=most)
        answer = await bench.prepare(ImagePart(media=media, bounds=wanted))
        assert sum(span.count for span in answer.body.visual) == num_tokens
    limit = bench.loaded.record.pictures.max_resized_pixels
    assert limit == bench.loaded.rules.image.max_pixels
    for least, most, field in (
        (None, limit + 1, "max_pixels"),
        (limit + 1, None, "min_pixels"),
        (9, 8, "min_pixels"),
    ):
        wrong = ImagePart(media=media, bounds=PixelBounds(min_pixels=least, max_pixels=most))
        assert await bench.failure(wrong) == ("invalid_request", field)


def test_a_worker_can_be_told_other_bounds_than_the_models(settings: VisionSettings) -> None:
    loaded = load(msgspec.structs.replace(settings, min_pixels=1024, max_pixels=8192), CommonSettings())
    assert loaded.rules.image == PixelBudget(1024, 8192)
    assert loaded.record.pictures.max_resized_pixels == 8192
    with pytest.raises(InvalidRequestError, match="min_pixels is 9000, more than max_pixels, 8192"):
        load(msgspec.structs.replace(settings, min_pixels=9000, max_pixels=8192), CommonSettings())


async def test_text_alone_needs_no_rows_and_no_tower(bench: Bench) -> None:
    answer = await bench.prepare(text("Tell me about lighthouses."))
    assert answer.body.failure is None
    assert answer.body.num_tokens > 5
    assert answer.body.visual == ()
    assert bench.deliveries == {"first": [], "second": []}


async def test_a_video_is_its_frames_with_times(bench: Bench) -> None:
    frames = tuple([await bench.store(picture(seed)) for seed in range(3)])
    answer = await bench.prepare(VideoPart(frames=frames, fps=2.0), text())
    assert answer.body.failure is None
    assert len(answer.body.visual) == 2
    assert bench.rows("first", "embeds").shape[0] == sum(span.count for span in answer.body.visual)


async def test_frames_may_have_times_of_their_own(bench: Bench) -> None:
    """The prompt says when each pair of frames is shown; other times are another prompt of the same length."""
    frames = tuple([await bench.store(picture(seed)) for seed in range(4)])
    texts = []
    for times in ((0.0, 0.5, 1.0, 1.5), (0.0, 0.2, 7.0, 9.0)):
        answer = await bench.prepare(VideoPart(frames=frames, times=times), text())
        assert answer.body.failure is None
        texts.append(decoded(bench, answer))
    assert [re.findall(r"<(.*?) seconds>", each) for each in texts] == [["0.2", "1.2"], ["0.1", "8.0"]]


async def test_a_video_file_is_its_frames_with_their_times(bench: Bench) -> None:
    media = await bench.store(clip(times=(0.0, 0.1, 0.2, 1.0, 3.0, 3.2)))
    part = VideoFilePart(media=media, fps=100.0)
    for _ in range(2):  # the second is recalled, its times too
        answer = await bench.prepare(part, text())
        assert answer.body.failure is None
        assert re.findall(r"<(.*?) seconds>", decoded(bench, answer)) == ["0.1", "0.6", "3.1"]
    assert answer.body.fetch_s == 0
    fewer = await bench.prepare(msgspec.structs.replace(part, max_frames=2), text())
    assert re.findall(r"<(.*?) seconds>", decoded(bench, fewer)) == ["1.6"]
    small = await bench.prepare(msgspec.structs.replace(part, bounds=PixelBounds(min_pixels=1, max_pixels=3 * 2048)))
    assert sum(span.count for span in small.body.visual) == 3 * 1
    broken = VideoFilePart(media=await bench.store(clip()[:700]))
    assert await bench.failure(broken) == ("truncated_image", "messages[0].content[0]")


async def test_a_picture_that_came_before_is_neither_fetched_nor_encoded_again(bench: Bench) -> None:
    ref = await bench.store(picture(3))
    first = await bench.prepare(ImagePart(media=ref), text("Who?"))
    gone = msgspec.structs.replace(ref, object_name="gone")
    again = await bench.prepare(ImagePart(media=gone), text("Where?"), attempt=2)
    assert first.body.failure is None
    assert again.body.failure is None
    assert (again.body.fetch_s, again.body.preprocess_s) == (0, 0)
    embeds = [
        from_wire("e", d.tensors["embeds"], dtype=torch.float32, shape=(None, 64)) for d in bench.deliveries["first"]
    ]
    assert torch.equal(*embeds)


async def test_pictures_that_cannot_be_used_are_named_with_their_reason(bench: Bench) -> None:
    good = ImagePart(media=await bench.store(picture(4)))
    for content, code in [
        (b"GIF89a is not what this is", "truncated_image"),
        (b"%PDF-1.7 nor this", "not_an_image"),
        (truncated_jpeg(), "truncated_image"),
        (picture(5, 2000, 4), "image_shape"),
    ]:
        bad = ImagePart(media=await bench.store(content))
        found = await bench.failure(text(), good, bad)
        assert found == (code, "messages[0].content[2]"), found
    missing = ImagePart(media=MediaRef(sha256="0" * 64, object_name="never", num_bytes=5))
    assert await bench.failure(missing) == ("media_missing", "messages[0].content[0]")
    assert (await bench.prepare(text(), good)).body.failure is None, "good ones pass alongside them"


async def test_prompts_that_do_not_fit_are_refused_before_the_tower_runs(bench: Bench) -> None:
    image = ImagePart(media=await bench.store(picture(6, 256, 256)))
    assert await bench.failure(text("long " * 3000)) == ("prompt_too_long", "messages")
    assert await bench.failure(image, text(), max_prompt_tokens=20) == ("prompt_too_long", "messages")
    assert await bench.failure(image, image, max_prompt_tokens=100) == ("prompt_too_long", "messages")
    assert bench.deliveries["first"] == []


async def waits_behind(bench: Bench, hostile: list[asyncio.Task[Received[PreparedSession]]]) -> tuple[float, float]:
    """Return for how long the event loop, which heartbeats come from, stood still at most, and what a prompt took."""
    await eventually(lambda: bench.heartbeat().num_sessions > 0)
    pause_s = took_s = 0.0
    while not all(task.done() for task in hostile):
        started = time.monotonic()
        await asyncio.sleep(0.01)
        pause_s = max(pause_s, time.monotonic() - started)
        started = time.monotonic()
        short = await bench.prepare(text("Who waits?"), session="short")
        assert short.body.failure is None, "or nobody has waited"
        took_s = max(took_s, time.monotonic() - started)
    print(f"longest pause {pause_s:.3f} s, longest preparation of a short prompt {took_s:.3f} s")
    assert took_s > 0.0
    return pause_s, took_s


@pytest.mark.alone
async def test_long_prompts_delay_neither_the_event_loop_nor_others(bench: Bench) -> None:
    """No bound on bytes applies: they are tokenised until there are too many."""
    await bench.prepare(text())
    hostile = [
        asyncio.create_task(bench.prepare(text("long " * 400_000), session=f"long-{number}", max_prompt_tokens=10**6))
        for number in range(NUM_HOSTILE)
    ]
    pause_s, took_s = await waits_behind(bench, hostile)
    failures = [task.result().body.failure for task in hostile]
    assert [failure and failure.code for failure in failures] == ["prompt_too_long"] * NUM_HOSTILE
    assert took_s < 1.0
    assert pause_s < 0.5


@pytest.mark.slow
async def test_large_pictures_that_are_decoded_in_one_go_leave_the_event_loop_its_turns(bench: Bench) -> None:
    """Pillow keeps the interpreter's lock while it decodes WebP; with several at once the loop waited for all."""
    large = [ImagePart(media=await bench.store(picture(each, 5000, 5000, "WEBP"))) for each in range(NUM_HOSTILE)]
    hostile = [asyncio.create_task(bench.prepare(part, session=f"large-{part.media.sha256[:8]}")) for part in large]
    pause_s, took_s = await waits_behind(bench, hostile)
    assert [task.result().body.failure for task in hostile] == [None] * NUM_HOSTILE
    assert took_s < 1.5
    assert pause_s < 1.0


async def test_requests_of_others_are_refused_and_those_of_every_epoch_served(bench: Bench) -> None:
    assert await bench.failure(text(), fingerprint="0" * 64) == ("fingerprint_mismatch", "fingerprint")
    assert await bench.failure(text(), pipeline="other") == ("contract", "pipeline")
    assert (await bench.prepare(text(), epoch=3)).body.failure is None
    assert (await bench.prepare(text(), epoch=2)).body.failure is None, "conductors of several shares ask"


async def test_rows_wait_for_room_and_else_are_sent_once_more_before_the_session_fails(bench: Bench) -> None:
    image = ImagePart(media=await bench.store(picture(7)))
    bench.refusals = [WorkerBusyError("full")] * 3 + [TransportError("lost")]
    assert (await bench.prepare(image)).body.failure is None
    bench.refusals = [TransportError("lost")] * 4
    assert (await bench.failure(image))[0] == "transport"
    bench.refusals = [WorkerBusyError("full")] * 100
    assert (await bench.failure(image, budget_s=0.5))[0] in {"worker_busy", "deadline_exceeded"}
    bench.refusals = []
    nobody = RowTarget(subject="nobody.listens.here", embeds=True)
    assert (await bench.failure(image, targets=(nobody,)))[0] == "no_responder"
    assert (await bench.failure(image, targets=(RowTarget(subject=bench.targets[0].subject, levels=(3,)),)))[
        0
    ] == "tensor_mismatch"


async def test_a_request_ends_at_its_deadline(bench: Bench) -> None:
    image = ImagePart(media=await bench.store(picture(8)))
    assert (await bench.failure(image, budget_s=0.0))[0] == "deadline_exceeded"


async def test_more_requests_than_it_takes_are_refused_at_once(bench: Bench) -> None:
    images = [ImagePart(media=await bench.store(picture(seed, 200, 200))) for seed in range(20, 32)]
    answers = await asyncio.gather(*(bench.prepare(image, session=f"s{i}") for i, image in enumerate(images)))
    codes = [answer.body.failure.code for answer in answers if answer.body.failure]
    assert 0 < len(codes) <= 7
    assert set(codes) == {"worker_busy"}


async def test_a_request_that_is_taken_back_is_worked_on_no_more(bench: Bench) -> None:
    content = picture(977)
    bench.refusals += [WorkerBusyError("no room for rows yet")] * 1000
    part = ImagePart(media=await bench.store(content))
    asking = asyncio.create_task(bench.prepare(part, TextPart(text="What is it?"), session="taken-back"))
    await eventually(lambda: bench.heartbeat().num_sessions == 1 and len(bench.refusals) < 1000)
    subject = subjects.cancel_work(bench.loaded.record.subject)
    pipeline = bench.loaded.record.pipeline
    for attempt in (2, 1):  # one that it has not, and then this
        await bench.transport.publish(subject, PrepareCancel(pipeline=pipeline, session="taken-back", attempt=attempt))
    await eventually(lambda: bench.heartbeat().num_sessions == 0)
    assert not asking.done(), "nobody waits for an answer"
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    bench.refusals.clear()
    assert (await bench.prepare(part, TextPart(text="What is it?"))).body.failure is None
