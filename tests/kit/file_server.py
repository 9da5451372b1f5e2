"""A web server of files that behaves as servers and networks do: without ranges, slowly, cut off, with other bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

_PIECE_BYTES = 4096


class FileServer:
    """Serves a directory under `url` while `serving`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = ""
        self.asked: list[tuple[str, int]] = []
        """Names and first bytes, in their order."""
        self.num_sent: dict[str, int] = {}
        """Bytes that went out, by name."""
        self.has_ranges = True
        self.cut_after: dict[str, int] = {}
        """Bytes of an answer after which its connection is lost."""
        self.hold_after: dict[str, int] = {}
        """Bytes of an answer after which nothing comes any more."""
        self.flipped: dict[str, int] = {}
        """Position of a byte that goes out as another one."""
        self.statuses: list[int] = []
        """What the next requests are answered, instead of files."""
        self.redirects: dict[str, str] = {}
        self.num_at_once = self.most_at_once = 0

    @classmethod
    @asynccontextmanager
    async def serving(cls, directory: Path) -> AsyncIterator[FileServer]:
        server = cls(directory)
        app = web.Application()
        app.router.add_get("/artifacts/{name}", server._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/artifacts"
        try:
            yield server
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        if name in self.redirects:
            raise web.HTTPFound(self.redirects[name])
        path = self.directory / name
        if not path.exists():
            raise web.HTTPNotFound
        content = bytearray(path.read_bytes())
        if name in self.flipped:
            content[self.flipped[name]] ^= 1
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")) if self.has_ranges else None
        start = int(asked[1]) if asked else 0
        self.asked.append((name, start))
        answer = web.StreamResponse(status=206 if asked else 200)
        answer.content_length = len(content) - start
        if asked:
            answer.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        await answer.prepare(request)
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        try:
            await self._send(request, answer, name, bytes(content[start:]))
        finally:
            self.num_at_once -= 1
        return answer

    async def _send(self, request: web.Request, answer: web.StreamResponse, name: str, content: bytes) -> None:
        for offset in range(0, len(content), _PIECE_BYTES):
            if offset >= self.cut_after.get(name, len(content)):
                assert request.transport is not None
                request.transport.abort()
                return
            if offset >= self.hold_after.get(name, len(content)):
                await asyncio.Event().wait()
            piece = content[offset : offset + _PIECE_BYTES]
            await answer.write(piece)
            self.num_sent[name] = self.num_sent.get(name, 0) + len(piece)
