"""Pictures, tars and tables behind URLs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import pytest_asyncio
from pyarrow import parquet

from broker_pipeline.captioning.sources.open import open_source, open_sources
from broker_pipeline.captioning.sources.opening import fetch
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.errors import ConfigurationError, InvalidRequestError, MediaFetchError
from tests.broker_pipeline.captioning.sources.read_items import Found, picture, read, read_twice
from tests.broker_pipeline.captioning.sources.test_tar import write_tar, write_webdataset
from tests.kit.file_server import FileServer


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[FileServer]:
    async with FileServer.serving(tmp_path) as serving:
        yield serving


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


async def found_at(*urls: str) -> list[Found]:
    return await asyncio.to_thread(lambda: read_twice(open_sources(urls)))


@pytest.mark.parametrize("has_ranges", [True, False])
async def test_pictures_tars_and_tables_come_over_http(tmp_path: Path, server: FileServer, has_ranges: bool) -> None:
    server.has_ranges = has_ranges
    (tmp_path / "a.png").write_bytes(picture(1))
    write_webdataset(tmp_path / "a.tar", 3)
    parquet.write_table(pa.Table.from_pylist([{"path": "a.png", "n": 1}]), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(f"n,url\n1,{server.url}/a.png\n2,a.png\n3,gone.png\n")
    (tmp_path / "a.txt").write_text("a.png\n")
    url = server.url
    assert await found_at(f"{url}/a.png?size=1") == [(f"{url}/a.png?size=1", picture(1), {})]
    tar = await found_at(f"{url}/a.tar?x=1")
    assert [found[0] for found in tar] == [f"{url}/a.tar?x=1::set/{n:04}" for n in range(3)]
    assert [found[1] for found in tar] == [picture(n) for n in range(3)]
    assert await found_at(f"{url}/a.parquet") == [(f"{url}/a.parquet#0", picture(1), {"n": 1})]
    assert [content for _, content, _ in await found_at(f"{url}/a.csv")] == [
        picture(1), picture(1), f"{url}/gone.png: there is no such file",
    ]  # fmt: skip
    assert await found_at(f"{url}/a.txt") == [(f"{url}/a.png", picture(1), {})]


async def test_what_a_server_does_wrong_is_told_with_the_url(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "a.png").write_bytes(bytes(100_000))
    write_tar(tmp_path / "a.tar", [(f"{n}.jpg", bytes(5000)) for n in range(9)])
    server.statuses = [503]
    with pytest.raises(MediaFetchError, match=r"/a\.png: 503") as refused:
        await asyncio.to_thread(fetch, f"{server.url}/a.png")
    assert refused.value.retryable
    with pytest.raises(MediaFetchError, match=r"/b\.png: there is no such file") as refused:
        await asyncio.to_thread(fetch, f"{server.url}/b.png")
    assert not refused.value.retryable
    server.cut_after = {"a.png": 50_000, "a.tar": 20_000}
    with pytest.raises(MediaFetchError, match=r"/a\.png: "):
        await asyncio.to_thread(fetch, f"{server.url}/a.png")
    found = await asyncio.to_thread(lambda: [read(item) for item in open_source(f"{server.url}/a.tar")])
    assert found[-1][0] == f"{server.url}/a.tar"
    assert str(found[-1][1]).startswith(f"{server.url}/a.tar: ")
    assert len(found) < 9
    gone = await found_at(f"{server.url}/gone.tar", f"{server.url}/gone.csv", f"{server.url}/gone.txt")
    assert [content for _, content, _ in gone] == [f"{id_}: there is no such file" for id_, _, _ in gone]
    with pytest.raises(MediaFetchError) as refused:
        await asyncio.to_thread(fetch, "http://127.0.0.1:9/a.png")
    assert refused.value.retryable


async def test_a_silent_server_is_given_up(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(bytes(100_000))
    server.hold_after = {"a.png": 50_000}
    monkeypatch.setattr("broker_pipeline.captioning.sources.opening._PICTURE_S", 0.3)
    with pytest.raises(MediaFetchError, match="no answer in time") as refused:
        await asyncio.to_thread(fetch, f"{server.url}/a.png")
    assert refused.value.retryable


def test_a_table_from_elsewhere_names_no_file_of_this_machine(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/set/pics/a.png", b"a")
    memory.pipe("/b.png", b"b")
    names = ["pics/a.png", "memory://set/pics/a.png", "/etc/passwd", "file:///etc/passwd", "../b.png", "local:///b.png"]
    names += ["simplecache::file:///etc/passwd", "memory://x::file:///etc/passwd", "\\\\host\\share", "s3://other/a"]
    memory.pipe("/set/a.csv", "\n".join(["path", *names]).encode())
    memory.pipe("/set/a.txt", "\n".join(names).encode())
    for name in ("a.csv", "a.txt"):
        found = [read(item) for item in open_source(f"memory://set/{name}")]
        assert [content for _, content, _ in found[:2]] == [b"a", b"a"]
        assert all("is not below the folder of the table" in str(content) for _, content, _ in found[2:])
        assert len(found) == len(names)
    assert [item.id for item in open_source("memory://set/a.txt")][:3] == [
        "memory://set/pics/a.png", "memory://set/pics/a.png", "memory://set/a.txt#2",
    ]  # fmt: skip


def test_patterns_and_folders_are_listed_in_order(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for n in (2, 1):
        memory.pipe(f"/set/{n}.tar", write_tar(tmp_path / "a.tar", [(f"{n}.jpg", b"%d" % n)]).read_bytes())
        memory.pipe(f"/set/deep/{n}.jpg", b"p%d" % n)
    memory.pipe("/set/README.md", b"r")
    folder = open_sources(["memory://set/"])
    assert [(id_.removeprefix("memory://").lstrip("/"), content) for id_, content, _ in read_twice(folder)] == [
        ("set/1.tar::1", b"1"), ("set/2.tar::2", b"2"), ("set/deep/1.jpg", b"p1"), ("set/deep/2.jpg", b"p2"),
    ]  # fmt: skip
    assert folder.left_out == {".md": 1}
    assert folder.count() is None
    chosen = open_source("memory://set/", SourceSettings(include=("deep/*",), exclude=("2.*",)))
    assert [content for _, content, _ in read_twice(chosen)] == [b"p1"]
    assert [content for _, content, _ in read_twice(open_source("memory://set/*.tar"))] == [b"1", b"2"]
    assert [content for _, content, _ in read_twice(open_source("memory://set/deep/[1].jpg"))] == [b"p1"]
    for url in ("memory://set/*.csv", "memory://none/"):
        with pytest.raises(ConfigurationError, match=r"memory://(set|none)/\S* has no pictures"):
            open_source(url)
    with pytest.raises(InvalidRequestError, match="--shuffle: memory://set/ is read as a stream"):
        open_source("memory://set/", SourceSettings(shuffle=1))


def test_a_scheme_that_nobody_knows_is_told() -> None:
    with pytest.raises(ConfigurationError, match="gopher://host/"):
        open_source("gopher://host/")
    with pytest.raises(ConfigurationError, match=r"gopher://host/a\.tar"):
        list(open_source("gopher://host/a.tar"))


def test_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write_table(pa.table({"path": ["http://host/a.png"]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("path\nhttp://host/a.png\n")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    install = r"pip install 'broker-pipeline\[data\]'"
    for path in (str(tmp_path / "a.parquet"), str(tmp_path / "a.csv"), "http://host/a.png", "http://host/a.tar"):
        with pytest.raises(ConfigurationError, match=f"needs fsspec: {install}"):
            list(open_source(path))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigurationError, match=rf"a\.parquet needs pyarrow: {install}"):
        open_source(str(tmp_path / "a.parquet")).count()
