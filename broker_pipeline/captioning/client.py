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
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from PIL import Image
from rich.progress import track

from broker_pipeline.captioning.asked_model import asked_model
from broker_pipeline.captioning.asker import Asker
from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.line_maker import Asked, LineMaker
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.captioning.sources.reading import read_file
from broker_pipeline.client.bulk_calls import BulkCalls
from broker_pipeline.client.calls import DEFAULT_GATEWAY_URL, DEFAULT_PATIENCE_S
from broker_pipeline.client.caption_request import CaptionRequest, Picture
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.errors import GatewayUnreachableError, InvalidRequestError, PipelineError, error_from_failure
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.process.daemon_thread import in_daemon_thread

T = TypeVar("T")

_ENCODING = threading.Lock()
"""An image of Pillow is read when it is first used, and the same one may be asked about twice at once."""

PictureInput = str | Path | bytes | Image.Image | Item | Mapping[str, Any]
"""A path, an encoded picture, a Pillow image, an item of a source, or a row of a data set with one of these in it."""


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
        await self._closing.__aexit__(kind, error, trace)

    async def caption(
        self, picture: PictureInput, prompt: str | None = None, *, system: str | None = None, **sampling: Any
    ) -> CaptionLine:
        """Return the line of one picture; `sampling` takes the fields of `SamplingParams` by name.

        Raises `MediaError`, `InvalidRequestError`, `GatewayUnreachableError`, or what the job failed with.
        """
        line = await self._line(picture, self._request(prompt, system, sampling), "picture")
        if line.error is not None:
            raise error_from_failure(line.error)
        return line

    async def map(
        self, pictures: Iterable[PictureInput], prompt: str | None = None, *, system: str | None = None, **sampling: Any
    ) -> AsyncIterator[CaptionLine]:
        """Yield a line for each picture, in their order; one that failed has an `error`, and the others go on."""
        request = self._request(prompt, system, sampling)
        under_way: deque[asyncio.Task[CaptionLine]] = deque()
        try:
            for number, picture in enumerate(pictures):
                under_way.append(asyncio.ensure_future(self._line(picture, request, f"#{number}")))
                if len(under_way) >= self._concurrency:
                    yield await under_way.popleft()
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _request(self, prompt: str | None, system: str | None, sampling: Mapping[str, Any]) -> CaptionRequest:
        try:
            params = msgspec.convert(dict(sampling), SamplingParams)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(str(error)) from error
        return CaptionRequest(prompt, params, self._own.fingerprint, system, occasion=uuid.uuid4().hex)

    @property
    def _own(self) -> _Open:
        if self._opened is None:
            raise InvalidRequestError("the client is not open: `with Client() as client:`")
        return self._opened

    async def _line(self, picture: PictureInput, request: CaptionRequest, name: str) -> CaptionLine:
        try:
            item = as_item(picture, name)
            name = item.id
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
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
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

    def caption(self, picture: PictureInput, prompt: str | None = None, **options: Any) -> CaptionLine:
        """Return the line of one picture, as `AsyncClient.caption` does."""
        return self._call(self._client.caption(picture, prompt, **options))

    def map(
        self, pictures: Iterable[PictureInput], prompt: str | None = None, *, progress: bool = False, **options: Any
    ) -> Iterator[CaptionLine]:
        """Yield a line for each picture, in their order; with `progress`, a bar shows how far it is."""
        shown = track(pictures, description="captions") if progress else pictures
        lines = self._client.map(shown, prompt, **options)
        try:
            while (line := self._call(anext(lines, None))) is not None:
                yield line
        finally:
            self._call(lines.aclose())  # type: ignore[attr-defined]

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def as_item(picture: PictureInput, name: str) -> Item:
    """Return a picture in whatever form as an item; `name` is what it is called where it says nothing of itself."""
    if isinstance(picture, Item):
        return picture
    if isinstance(picture, str | Path):
        path = Path(picture)
        return Item(str(picture), partial(read_file, path), path=path)
    if isinstance(picture, bytes):
        return Item(name, lambda: picture)
    if isinstance(picture, Image.Image):
        return Item(name, lambda: _encoded(picture))
    for column in ("image", "picture", "bytes", "path"):
        if picture.get(column) is not None:
            return as_item(picture[column], str(picture.get("path") or name))
    raise InvalidRequestError("a row has none of `image`, `picture`, `bytes` and `path`", field=name)


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    with _ENCODING:
        image.save(buffer, "PNG")
    return buffer.getvalue()
