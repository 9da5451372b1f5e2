"""Captions from Python: `Client` for scripts and notebooks, `AsyncClient` for event loops.

    from broker_pipeline import Client

    with Client() as client:
        print(client.caption("cat.jpg").caption)
        for line in client.map(pictures, "What is this?", max_tokens=100):
            print(line.path, line.caption or line.error)

Both speak to the gateway as `broker-pipeline caption` does: through restarts of it, each question asked once.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sized
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from PIL import Image
from rich.console import Console
from rich.progress import track

from broker_pipeline.captioning.asked_model import asked_model
from broker_pipeline.captioning.asker import Asker
from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.line_maker import Asked, LineMaker
from broker_pipeline.captioning.run import in_thread
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.captioning.sources.named_item import item_at
from broker_pipeline.client.bulk_calls import BulkCalls
from broker_pipeline.client.calls import DEFAULT_GATEWAY_URL, DEFAULT_PATIENCE_S
from broker_pipeline.client.caption_request import CaptionRequest, Picture
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.client.visual_params import VisualParams
from broker_pipeline.errors import GatewayUnreachableError, InvalidRequestError, PipelineError, error_from_failure
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.process.daemon_thread import in_daemon_thread
from broker_pipeline.process.terminal import printable

T = TypeVar("T")

_ENCODING = threading.Lock()
"""An image of Pillow is read when it is first used, and the same one may be asked about twice at once."""

PictureInput = str | Path | bytes | bytearray | Image.Image | Item | Mapping[str, Any]
"""A path or URL, an encoded picture, a Pillow image, an item of a source, or a row with one of these in it."""
_FORMS = "a path, URL, encoded picture or Pillow image, or a row of a data set with one of these"


@dataclass(frozen=True, slots=True)
class _Open:
    asker: Asker
    lines: LineMaker
    fingerprint: str


class AsyncClient:
    """Asks for captions on an event loop. Use as an async context manager."""

    def __init__(
        self,
        gateway: str = DEFAULT_GATEWAY_URL,
        *,
        key: str | None = None,
        patience_s: float = DEFAULT_PATIENCE_S,
        concurrency: int = 64,
    ) -> None:
        """Ask `gateway`, `concurrency` pictures at a time; `patience_s` is how long it may be away."""
        self._gateway, self._key, self._patience_s, self._concurrency = gateway, key, patience_s, concurrency
        self._closing = AsyncExitStack()
        self._opened: _Open | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                GatewayClient.open(self._gateway, patience_s=self._patience_s, key=self._key)
            )
            await client.check()
            conductor = await asked_model(client, self._patience_s, lambda _: None)
            calls = await stack.enter_async_context(BulkCalls.open(client))
            self._opened = _Open(Asker(calls), LineMaker(conductor.model or None), conductor.fingerprint)
            self._closing = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened = None
        await self._closing.__aexit__(kind, error, trace)

    async def caption(
        self, picture: PictureInput, prompt: str | None = None, *, system: str | None = None, **params: Any
    ) -> CaptionLine:
        """Return the line of one picture; `params` takes the fields of `SamplingParams` and `VisualParams` by name.

        Raises `MediaError`, `InvalidRequestError`, `GatewayUnreachableError`, or what the job failed with.
        """
        line = await self._line(picture, self._request(prompt, system, params), "picture")
        if line.error is not None:
            reason = f"{printable(line.path)}: {line.error.message}"
            raise error_from_failure(msgspec.structs.replace(line.error, message=reason))
        return line

    async def map(
        self, pictures: Iterable[PictureInput], prompt: str | None = None, *, system: str | None = None, **params: Any
    ) -> AsyncIterator[CaptionLine]:
        """Yield a line for each picture, in their order; one that failed has an `error`, and the others go on.

        `pictures` are taken in a thread, as they are needed. Raises `InvalidRequestError` where they are one picture.
        """
        if isinstance(pictures, str | bytes | bytearray | Mapping):
            kind = type(pictures).__name__
            raise InvalidRequestError(f"map takes many pictures, and `{kind}` is one, or a row, or holds splits")
        request = self._request(prompt, system, params)
        under_way: deque[asyncio.Task[CaptionLine]] = deque()
        try:
            async for number, picture in in_thread(enumerate(pictures), most=1):  # those of a data set are decoded
                under_way.append(asyncio.ensure_future(self._line(picture, request, f"#{number}")))
                if len(under_way) >= self._concurrency:
                    yield await under_way.popleft()
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _request(self, prompt: str | None, system: str | None, params: Mapping[str, Any]) -> CaptionRequest:
        seen = {name: params[name] for name in VisualParams.__struct_fields__ if name in params}
        sampled = {name: value for name, value in params.items() if name not in seen}
        try:
            sampling, visual = msgspec.convert(sampled, SamplingParams), msgspec.convert(seen, VisualParams)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(str(error)) from error
        model, occasion = self._own.fingerprint, uuid.uuid4().hex
        return CaptionRequest(prompt, sampling, model, system, occasion=occasion, visual=visual)

    @property
    def _own(self) -> _Open:
        if self._opened is None:
            raise _not_open()
        return self._opened

    async def _line(self, picture: PictureInput, request: CaptionRequest, name: str) -> CaptionLine:
        try:
            item = as_item(picture, name)
            name, request = item.id, request.about(is_video=item.is_video)
            content = await in_daemon_thread(item.read)
        except PipelineError as error:
            return self._own.lines.unreadable(Asked(Picture(name, ""), request), error.to_failure())
        asked = Asked(Picture(item.id, hashlib.sha256(content).hexdigest()), request)
        try:
            record = await self._own.asker.ask(asked.picture, content, request, 0, is_video=item.is_video)
        except GatewayUnreachableError:
            raise
        except PipelineError as error:
            return self._own.lines.refused(asked, error.to_failure())
        return self._own.lines.ended(asked, record)


class Client:
    """Asks for captions and waits for them. Use as a context manager, from any thread."""

    def __init__(self, gateway: str = DEFAULT_GATEWAY_URL, **options: Any) -> None:
        """Take what `AsyncClient` takes."""
        self._client = AsyncClient(gateway, **options)
        self._closing = asyncio.Event()
        self._thread = threading.Thread()  # not alive

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        opened: Future[None] = Future()
        self._living = asyncio.run_coroutine_threadsafe(self._live(opened), self._loop)
        try:
            wait((opened, self._living), return_when=FIRST_COMPLETED)
            if self._living.done():
                self._living.result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        try:
            self._living.result()
        finally:
            self._stop()

    async def _live(self, opened: Future[None]) -> None:
        """Be open until told to close: in one task, which is told of what goes wrong."""
        async with self._client:
            opened.set_result(None)
            await self._closing.wait()
        await self._loop.shutdown_asyncgens()  # of `map`, where nobody went to its end

    def caption(self, picture: PictureInput, prompt: str | None = None, **options: Any) -> CaptionLine:
        """Return the line of one picture, as `AsyncClient.caption` does."""
        return self._call(partial(self._client.caption, picture, prompt, **options))

    def map(
        self, pictures: Iterable[PictureInput], prompt: str | None = None, *, progress: bool = False, **options: Any
    ) -> Iterator[CaptionLine]:
        """Yield a line for each picture, in their order; with `progress`, a bar shows how many have come."""
        lines = self._lines(pictures, prompt, **options)
        total = len(pictures) if isinstance(pictures, Sized) else None
        return iter(track(lines, "captions", total, console=_bar_console())) if progress else lines

    def _lines(self, pictures: Iterable[PictureInput], prompt: str | None, **options: Any) -> Iterator[CaptionLine]:
        lines = self._client.map(pictures, prompt, **options)
        try:
            while (line := self._call(partial(_next, lines))) is not None:
                yield line
        finally:
            if self._thread.is_alive():
                self._call(lines.aclose)  # type: ignore[attr-defined]

    def _call(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Wait for work on the loop. Ctrl-C comes to this thread, at any line: it is raised when the work has ended."""
        if not self._thread.is_alive():
            raise _not_open()
        tasks: list[asyncio.Task[T]] = []
        has_ended: SimpleQueue[None] = SimpleQueue()  # a lock of Python's own could be left locked by Ctrl-C

        def start() -> None:
            tasks.append(self._loop.create_task(begin()))
            tasks[0].add_done_callback(lambda _: has_ended.put(None))

        def stop() -> None:
            if tasks:
                tasks[0].cancel()
            else:
                has_ended.put(None)

        try:
            self._loop.call_soon_threadsafe(start)
            has_ended.get()
            return tasks[0].result()
        except BaseException:
            self._loop.call_soon_threadsafe(stop)
            if not (tasks and tasks[0].done()):
                has_ended.get()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(lines: AsyncIterator[T]) -> T | None:
    return await anext(lines, None)  # a generator belongs to the loop of the thread that begins it


def _bar_console() -> Console:
    """Return where a bar is drawn. In a notebook as text, since rich's own way shows nothing without ipywidgets."""
    console = Console()
    return Console(force_jupyter=False, force_terminal=True) if console.is_jupyter else console


def _not_open() -> InvalidRequestError:
    return InvalidRequestError("the client is not open: `with Client() as client:`")


def as_item(picture: PictureInput, name: str) -> Item:
    """Return a picture in whatever form as an item; `name` is what it is called where it says nothing of itself."""
    if isinstance(picture, Item):
        return picture
    if isinstance(picture, str | Path):
        return item_at(str(picture), str(picture))
    if isinstance(picture, bytes | bytearray):
        return Item(name, partial(bytes, picture))
    if isinstance(picture, Image.Image):
        return Item(name, lambda: _encoded(picture))
    if not isinstance(picture, Mapping):
        raise InvalidRequestError(f"`{type(picture).__name__}` is no picture; take {_FORMS}", field=name)
    for column in ("image", "picture", "bytes", "path"):
        if picture.get(column) is not None:
            return as_item(picture[column], str(picture.get("path") or name))
    raise InvalidRequestError("a row has none of `image`, `picture`, `bytes` and `path`", field=name)


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    with _ENCODING:
        image.save(buffer, "PNG")
    return buffer.getvalue()
