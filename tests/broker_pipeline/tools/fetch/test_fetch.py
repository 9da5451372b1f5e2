"""Files of an artifact from a real web server and from a directory, whole, interrupted, damaged and refused."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from rich.console import Console

from broker_pipeline.artifact_files.selection import stage_files
from broker_pipeline.artifact_manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    VISION_FILE,
    WeightsManifest,
    block_file,
    read_manifest,
)
from broker_pipeline.errors import (
    ArtifactCorruptError,
    ArtifactMissingError,
    ConfigurationError,
    FetchError,
    FetchInterruptedError,
    OutputError,
    ServerStartError,
)
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.fetch import run as fetch_run
from broker_pipeline.tools.fetch.http_source import HttpSource
from broker_pipeline.tools.fetch.run import WORK_NAME, Fetch, Fetched
from broker_pipeline.tools.fetch.source import DirectorySource
from broker_pipeline.tools.local.directory_lock import DirectoryLock
from stages.artifact import Artifact
from stages.qwen3_vl.tensors import stage_shapes
from tests.kit.file_server import FileServer
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.running.small_disk import needs_mounting, resize, small_disk

VISION = {VISION_FILE}


@pytest.fixture
def whole() -> Path:
    return tiny_artifact(tied=False)


@pytest_asyncio.fixture
async def server(whole: Path) -> AsyncIterator[FileServer]:
    async with FileServer.serving(whole) as serving:
        yield serving


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_run, "_FIRST_PAUSE_S", 0.001)


def middle(manifest: WeightsManifest) -> set[str]:
    return stage_files(manifest, BlockRange(start=1, stop=3))


async def fetch(url: str, target: Path, files: set[str] | None = None, num_parallel: int = 4) -> Fetched:
    async with HttpSource.opened(url) as source:
        opened = await Fetch.open(source, target)
        files = middle(opened.manifest) if files is None else files
        return await opened.run(files, Console(quiet=True), num_parallel=num_parallel)


def same(whole: Path, target: Path, names: set[str] | None = None) -> bool:
    names = {path.name for path in target.iterdir()} if names is None else names
    return all((whole / name).read_bytes() == (target / name).read_bytes() for name in names)


async def test_a_stage_starts_with_what_was_fetched_and_says_what_others_would_need(
    server: FileServer, whole: Path, tmp_path: Path
) -> None:
    target = tmp_path / "deep" / "8b"
    fetched = await fetch(server.url, target)
    artifact = Artifact.open(target)
    assert fetched.num_kept == 0
    assert {path.name for path in target.glob("*.safetensors")} == middle(artifact.manifest)
    assert same(whole, target)
    assert not (target / WORK_NAME).exists()
    ours, theirs = (Artifact.open(place).load(stage_shapes(artifact.config, 1, 3)) for place in (target, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    with pytest.raises(
        ArtifactMissingError, match=r"lacks.*block-00003\.safetensors\. `broker-pipeline fetch"
    ) as lacks:
        artifact.load(stage_shapes(artifact.config, 2, 4))
    assert f"fetch --blocks 3:4 FROM {target}`" in lacks.value.message
    await fetch(server.url, target, {block_file(3)})
    assert artifact.load(stage_shapes(artifact.config, 2, 4))


async def test_a_second_run_asks_for_the_manifest_only(server: FileServer, tmp_path: Path) -> None:
    await fetch(server.url, tmp_path / "to")
    server.asked.clear()
    again = await fetch(server.url, tmp_path / "to")
    assert server.asked == [(MANIFEST_NAME, 0)]
    assert (again.num_files, again.num_bytes) == (0, 0)


async def test_altered_small_files_and_cut_large_ones_come_again(
    server: FileServer, whole: Path, tmp_path: Path
) -> None:
    await fetch(server.url, tmp_path)
    for name in ("tokenizer.json", CONFIG_NAME):
        content = bytearray((tmp_path / name).read_bytes())
        content[5] ^= 1
        (tmp_path / name).write_bytes(content)
    with (tmp_path / block_file(1)).open("r+b") as file:
        file.truncate(1000)
    assert (await fetch(server.url, tmp_path)).num_files == 2
    assert same(whole, tmp_path)


async def test_a_lost_connection_is_made_again_where_it_broke(server: FileServer, whole: Path, tmp_path: Path) -> None:
    server.cut_after[VISION_FILE] = 400_000
    await fetch(server.url, tmp_path, VISION)
    starts = [start for name, start in server.asked if name == VISION_FILE]
    assert len(starts) >= 3
    assert starts == sorted(starts), "never again from the beginning"
    assert starts[-1] > 400_000, "the last time, it had come further than a connection lasts"
    assert same(whole, tmp_path, VISION)


async def test_a_server_without_ranges_does_unless_it_never_gets_to_the_end(
    server: FileServer, whole: Path, tmp_path: Path
) -> None:
    server.has_ranges = False
    server.cut_after[VISION_FILE] = 400_000
    with pytest.raises(FetchInterruptedError, match=VISION_FILE):
        await fetch(server.url, tmp_path, VISION)
    del server.cut_after[VISION_FILE]
    await fetch(server.url, tmp_path, VISION)
    assert same(whole, tmp_path, VISION)


async def test_a_server_that_is_busy_is_asked_again(server: FileServer, whole: Path, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    await fetch(server.url, tmp_path, VISION)
    assert same(whole, tmp_path, VISION)


async def test_no_more_files_at_once_than_allowed(server: FileServer, tmp_path: Path) -> None:
    await fetch(server.url, tmp_path, num_parallel=2)
    assert server.most_at_once <= 2


async def test_damage_on_the_way_is_cut_out_and_damage_at_the_source_is_named(
    server: FileServer, whole: Path, tmp_path: Path
) -> None:
    position = (whole / VISION_FILE).stat().st_size - 10
    server.flipped[VISION_FILE] = position
    with pytest.raises(ArtifactCorruptError, match=rf"{VISION_FILE}: .* comes from .* twice") as damaged:
        await fetch(server.url, tmp_path, VISION)
    assert "export verify" in damaged.value.message
    assert not (tmp_path / MANIFEST_NAME).exists(), "no artifact yet"
    assert (tmp_path / WORK_NAME / VISION_FILE).stat().st_size < position
    first, second = [start for name, start in server.asked if name == VISION_FILE]
    assert (first, second > 0) == (0, True), "what was right before does not come again"
    server.flipped.clear()
    await fetch(server.url, tmp_path, VISION)
    assert same(whole, tmp_path, VISION)


async def test_what_an_earlier_run_left_is_read_again(server: FileServer, whole: Path, tmp_path: Path) -> None:
    content = bytearray((whole / VISION_FILE).read_bytes())
    content[-10] ^= 1
    (tmp_path / WORK_NAME).mkdir()
    (tmp_path / WORK_NAME / VISION_FILE).write_bytes(content + b"more than there is")
    await fetch(server.url, tmp_path, VISION)
    assert 0 < server.num_sent[VISION_FILE] < len(content) / 2
    assert same(whole, tmp_path, VISION)


async def test_what_a_source_lacks_or_has_otherwise_is_named(server: FileServer, whole: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    server.directory = part
    (part / block_file(1)).unlink()
    with (part / block_file(2)).open("ab") as file:
        file.write(b"more")
    with pytest.raises(FetchError, match=rf"has no {block_file(1)}"):
        await fetch(server.url, tmp_path / "to", {block_file(1)})
    with pytest.raises(FetchError, match=rf"{block_file(2)} has \d+ bytes at http://.*manifest says \d+"):
        await fetch(server.url, tmp_path / "to", {block_file(2)})
    (part / MANIFEST_NAME).unlink()
    with pytest.raises(FetchError, match=rf"has no {MANIFEST_NAME}"):
        await fetch(server.url, tmp_path / "to")
    (part / MANIFEST_NAME).write_text("{}")
    with pytest.raises(ArtifactCorruptError, match="manifest"):
        await fetch(server.url, tmp_path / "to")
    server.statuses = [403]
    with pytest.raises(FetchError, match="does not give"):
        await fetch(server.url.replace("//", "//me:secret@"), tmp_path / "to")


async def test_redirects_are_followed_a_few_times(server: FileServer, whole: Path, tmp_path: Path) -> None:
    async with FileServer.serving(whole) as elsewhere:
        server.redirects[VISION_FILE] = f"{elsewhere.url}/{VISION_FILE}"
        await fetch(server.url, tmp_path, VISION)
        assert VISION_FILE in elsewhere.num_sent
    server.redirects[block_file(1)] = f"{server.url}/{block_file(1)}"
    with pytest.raises(FetchError, match="redirected more than"):
        await fetch(server.url, tmp_path, {block_file(1)})
    server.redirects[block_file(1)] = "file:///etc/passwd"
    with pytest.raises(FetchError, match="no web server"):
        await fetch(server.url, tmp_path, {block_file(1)})


async def test_another_artifact_is_not_mixed_in(server: FileServer, tmp_path: Path) -> None:
    await fetch(server.url, tmp_path / "to")
    server.directory = tiny_artifact(tied=True)
    with pytest.raises(ConfigurationError, match="another artifact"):
        await fetch(server.url, tmp_path / "to")


async def test_one_fetch_at_a_time_in_a_directory(server: FileServer, tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / WORK_NAME)
    lock.acquire()
    with pytest.raises(ServerStartError, match="in use"):
        await fetch(server.url, tmp_path)
    lock.release()


@needs_mounting
async def test_a_disk_is_too_small_or_fills_up_and_what_came_is_kept(
    server: FileServer, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "disk"
    with small_disk(target, "1m"):
        with pytest.raises(OutputError, match="fewer blocks"):
            await fetch(server.url, target, VISION)
        assert VISION_FILE not in server.num_sent
        monkeypatch.setattr(fetch_run, "check_room", lambda *_: None)  # somebody else writes as well
        with pytest.raises(OutputError, match=r"No space left on device; .* run this again"):
            await fetch(server.url, target, VISION)
        resize(target, "4m")
        server.num_sent.clear()
        await fetch(server.url, target, VISION)
        assert server.num_sent[VISION_FILE] < (whole / VISION_FILE).stat().st_size
        assert same(whole, target, VISION)


async def test_a_directory_is_a_source(whole: Path, tmp_path: Path) -> None:
    opened = await Fetch.open(DirectorySource(whole), tmp_path)
    await opened.run(middle(opened.manifest), Console(quiet=True), num_parallel=2)
    assert same(whole, tmp_path)
    with pytest.raises(FetchError, match="has no"):
        await Fetch.open(DirectorySource(tmp_path / "nowhere"), tmp_path)
    assert read_manifest(tmp_path)


async def test_python_s_own_server_which_knows_no_ranges_does(whole: Path, tmp_path: Path) -> None:
    argv = (sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(whole))
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        port = (await process.stdout.readline()).split()[5].decode()
        (tmp_path / WORK_NAME).mkdir()
        (tmp_path / WORK_NAME / VISION_FILE).write_bytes((whole / VISION_FILE).read_bytes()[:500_000])
        await fetch(f"http://127.0.0.1:{port}/", tmp_path, VISION)
    finally:
        process.kill()
        await process.wait()
    assert same(whole, tmp_path, VISION)
    with pytest.raises(FetchInterruptedError, match="cannot be read"):
        await fetch(f"http://127.0.0.1:{port}/", tmp_path, VISION)
