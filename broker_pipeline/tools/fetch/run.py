"""A whole fetch: what is wanted and not here comes over, several files at a time, and is compared with the manifest.

TO/                          what is whole and right, each file by one rename; the manifest last
TO/.fetch/                   lock, and files on their way; gone when all are here
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from rich.console import Console

from broker_pipeline.artifact_files.contents import FileContent, contents_of, find_damage, size_problem
from broker_pipeline.artifact_manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    WeightsManifest,
    check_manifest,
    decode_manifest,
    read_manifest,
)
from broker_pipeline.errors import (
    ArtifactCorruptError,
    ConfigurationError,
    FetchInterruptedError,
    OutputError,
)
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.process.host_room import Needs, RoomNeed, look, shortages
from broker_pipeline.tools.fetch.partial_file import PartialFile
from broker_pipeline.tools.fetch.source import Source, Stream
from broker_pipeline.tools.file_progress import ProgressReport
from broker_pipeline.tools.local.directory_lock import DirectoryLock

log = structlog.get_logger()

WORK_NAME = ".fetch"
_MAX_MANIFEST_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 16 << 20
_MAX_TRIES = 6
"""Without a byte in between."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch came to."""

    num_files: int
    num_bytes: int
    """Of files that were not here before, parts of earlier runs included."""
    num_kept: int


class Fetch:
    """Brings files of one artifact into one directory. `open` it, then `run`."""

    def __init__(self, source: Source, target: Path, encoded: bytes, manifest: WeightsManifest) -> None:
        """Bring what `manifest` lists."""
        self._source = source
        self._target = target
        self._work = target / WORK_NAME
        self._encoded = encoded
        self.manifest = manifest
        self._contents = contents_of(manifest)

    @classmethod
    async def open(cls, source: Source, target: Path) -> Fetch:
        """Read the source's manifest.

        Raises `FetchError` where there is none, `ArtifactCorruptError` where it contradicts itself,
        `ConfigurationError` where `target` has files of another artifact.
        """
        encoded = await _patiently(source.read_small, MANIFEST_NAME, _MAX_MANIFEST_BYTES)
        path = Path(MANIFEST_NAME)
        manifest = decode_manifest(encoded, path)
        check_manifest(manifest, path)
        if (target / MANIFEST_NAME).exists() and read_manifest(target).fingerprint != manifest.fingerprint:
            raise ConfigurationError(
                f"{target} holds another artifact than {source}; name another directory", field="TO"
            )
        return cls(source, target, encoded, manifest)

    async def run(self, weight_files: set[str], console: Console, *, num_parallel: int) -> Fetched:
        """Bring small files and these weight files, as far as they are not here.

        Raises `FetchError` where something cannot be had, `ArtifactCorruptError` where it is not what the manifest
        says, `OutputError` where the disk is too small, `ServerStartError` where another fetch is at it. What came
        until then is kept for the next run.
        """
        names = [file.name for file in self.manifest.side_files] + sorted(weight_files.intersection(self._contents))
        absent = await asyncio.to_thread(self._absent, names)
        if absent or not (self._target / MANIFEST_NAME).exists() or not self._has_config():
            lock = DirectoryLock(self._work)
            lock.acquire()
            try:
                await self._bring_all(absent, console, num_parallel)
                await asyncio.to_thread(shutil.rmtree, self._work)
            finally:
                lock.release()
        return Fetched(len(absent), sum(content.size_bytes for content in absent), len(names) - len(absent))

    def _absent(self, names: Iterable[str]) -> list[FileContent]:
        """Return what is not here; small files are hashed, of large ones the size counts: a worker hashes them."""
        small = {file.name for file in self.manifest.side_files}
        absent = []
        for name in names:
            path, content = self._target / name, self._contents[name]
            if size_problem(path, content.size_bytes) or (name in small and find_damage(path, content, lambda _: None)):
                absent.append(content)
        return absent

    async def _bring_all(self, absent: Collection[FileContent], console: Console, num_parallel: int) -> None:
        num_there = sum(_size(self._work / content.name) for content in absent)
        num_bytes = max(0, sum(content.size_bytes for content in absent) - num_there)
        check_room(self._target, num_bytes, len(absent))
        slots = asyncio.Semaphore(num_parallel)
        with ProgressReport("fetching", num_bytes, len(absent), console) as report, raising_first_error():
            async with asyncio.TaskGroup() as tasks:
                for content in absent:
                    tasks.create_task(self._bring_in_turn(content, report, slots))
        config = await _patiently(self._source.read_small, CONFIG_NAME, _MAX_CONFIG_BYTES)
        if hashlib.sha256(config).hexdigest() != self.manifest.config_sha256:
            raise self._damaged(CONFIG_NAME, "it")
        with _disk_errors(self._target):
            await asyncio.to_thread(self._write, CONFIG_NAME, config)
            await asyncio.to_thread(self._write, MANIFEST_NAME, self._encoded)  # now the directory is an artifact

    async def _bring_in_turn(self, content: FileContent, report: ProgressReport, slots: asyncio.Semaphore) -> None:
        async with slots:
            with _disk_errors(self._target):
                partial = await asyncio.to_thread(PartialFile, self._work, content)
                try:
                    await self._bring(partial, report)
                    await asyncio.to_thread(partial.finish, self._target / content.name)
                finally:
                    partial.close()
            report.file_done(content.name, content.size_bytes, "fetched")

    async def _bring(self, partial: PartialFile, report: ProgressReport) -> None:
        """Ask until the file is whole, as long as each time brings something, or only the network is at fault."""
        num_tries, most_bytes, wrong = 0, partial.num_bytes, ""
        reason: FetchInterruptedError | None = None
        while not partial.is_whole:
            if reason is not None:
                await _pause(num_tries, reason)
            reason = FetchInterruptedError(f"{self._source}: {partial.content.name} ends too early")
            try:
                async with self._source.reading(partial.content, partial.num_bytes) as stream:
                    what = await _receive(partial, stream, report)
            except FetchInterruptedError as error:
                what, reason = "", error
            if what and what == wrong:
                raise self._damaged(partial.content.name, what)
            wrong = what or wrong
            num_tries = 0 if partial.num_bytes > most_bytes else num_tries + 1
            most_bytes = max(most_bytes, partial.num_bytes)

    def _damaged(self, name: str, what: str) -> ArtifactCorruptError:
        return ArtifactCorruptError(
            f"{name}: {what} comes from {self._source} with other bytes than its manifest says, twice. If "
            "`broker-pipeline export verify` finds nothing there, run this again; else mend the source first",
            field=name,
        )

    def _has_config(self) -> bool:
        path = self._target / CONFIG_NAME
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.manifest.config_sha256

    def _write(self, name: str, content: bytes) -> None:
        partial = PartialFile(self._work, FileContent.whole(name, len(content), hashlib.sha256(content).hexdigest()))
        partial.cut(all_of_it=True)
        partial.write(content)
        partial.finish(self._target / name)
        partial.close()


async def _receive(partial: PartialFile, stream: Stream, report: ProgressReport) -> str:
    """Write what comes; at a section that is wrong, drop it and return what it is, else nothing."""
    if stream.start < partial.num_bytes:
        report.advance(-partial.num_bytes)
        await asyncio.to_thread(lambda: partial.cut(all_of_it=True))
    async for piece in stream.pieces:
        taken = piece[: partial.content.size_bytes - partial.num_bytes]
        wrong = await asyncio.to_thread(partial.write, taken)
        report.advance(len(taken))
        if wrong is not None:
            await asyncio.to_thread(partial.cut)
            return wrong.what or "it"
        if partial.is_whole:
            break
    return ""


async def _patiently(read: Callable[[str, int], Awaitable[bytes]], name: str, max_bytes: int) -> bytes:
    num_tries = 0
    while True:
        try:
            return await read(name, max_bytes)
        except FetchInterruptedError as error:
            num_tries += 1
            await _pause(num_tries, error)


async def _pause(num_tries: int, reason: FetchInterruptedError) -> None:
    """Wait a moment before the next try; raise the reason when it was the last."""
    if num_tries >= _MAX_TRIES:
        raise reason
    log.info("fetch_repeated", reason=reason.message)
    await asyncio.sleep(min(_FIRST_PAUSE_S * 2**num_tries, _LONGEST_PAUSE_S))


def check_room(target: Path, num_bytes: int, num_files: int) -> None:
    """Raise `OutputError` where a file system has too little room for what is to come."""
    remedy = "free some, name another directory, or fetch fewer blocks"
    needs = Needs(rooms=(RoomNeed(target, num_bytes, num_files + 3, "the files that are to come", remedy),))
    for shortage in shortages(needs, look(needs)):
        raise OutputError(shortage)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {error.filename or target}: {error.strerror}; what came is kept, run this again when it is "
            "mended"
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
