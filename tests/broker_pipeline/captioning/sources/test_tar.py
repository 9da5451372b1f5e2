"""Tars of WebDataset and of anybody else, whole and broken."""

import io
import json
import random
import tarfile
from pathlib import Path

import pytest
import webdataset

from broker_pipeline.captioning.sources.open import open_source, open_sources
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.captioning.sources.tar import TarSource
from tests.broker_pipeline.captioning.sources.read_items import picture, read_twice


def write_webdataset(path: Path, count: int, *, compress: bool = False) -> Path:
    with webdataset.TarWriter(str(path), compress=compress) as writer:
        for number in range(count):
            sample = {"__key__": f"set/{number:04}", "png": picture(number), "cls": number, "json": {"n": number}}
            writer.write(sample | {"txt": f"number {number}"})
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_samples_of_webdataset_are_items_with_fields(tmp_path: Path, name: str) -> None:
    path = write_webdataset(tmp_path / name, 3, compress=name.endswith("gz"))
    source = open_source(str(path))
    assert source.count() is None
    assert read_twice(source) == [
        (f"{path}::set/{n:04}", picture(n), {"cls": str(n), "n": n, "txt": f"number {n}"}) for n in range(3)
    ]
    assert [item.name for item in source] == ["0000", "0001", "0002"]
    assert not any(item.path for item in source)


def test_a_tar_of_pictures_needs_no_keys_and_counts_the_rest(tmp_path: Path) -> None:
    members = [("photos/", b""), ("photos/a.JPG", b"a"), ("photos/._a.JPG", b"x"), ("b.png", b"b"), ("README.md", b"r")]
    path = write_tar(tmp_path / "a.tar", members[1:])
    source = TarSource(str(path), SourceSettings())
    assert [found[:2] for found in read_twice(source)] == [(f"{path}::photos/a", b"a"), (f"{path}::b", b"b")]
    assert source.left_out == {".md": 1}


def test_several_pictures_of_a_key_and_keys_that_come_again_are_kept_apart(tmp_path: Path) -> None:
    members = [("a.1.jpg", b"1"), ("a.2.jpg", b"2"), ("b.jpg", b"3"), ("b.mask.png", b"4"), ("c.jpg", b"5")]
    path = write_tar(tmp_path / "a.tar", [*members, ("b.jpg", b"6"), ("d.jpg", b"7"), ("d.jpg", b"8")])
    source = open_sources([str(path)])
    found = read_twice(source)
    assert [(id_.rpartition("::")[2], content) for id_, content, _ in found] == [
        ("a.1.jpg", b"1"), ("a.2.jpg", b"2"), ("b", b"3"), ("c", b"5"), (f"b@{5 * 1024}", b"6"), ("d", b"7"),
        (f"d@{7 * 1024}", b"8"),
    ]  # fmt: skip
    assert source.repeated == {f"{path}::b@{5 * 1024}": 2}


def test_videos_are_members_where_they_are_asked_for(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.mp4", b"v"), ("b.jpg", b"p")])
    assert [item.is_video for item in open_source(str(path), SourceSettings(videos=True))] == [True, False]
    assert [item.is_video for item in open_source(str(path))] == [False]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_where_a_tar_breaks_off_what_was_before_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    contents = [random.Random(n).randbytes(2000) for n in range(9)]
    write_tar(path, [(f"{n}.png", each) for n, each in enumerate(contents)], "w:gz" if name.endswith("gz") else "w")
    whole = path.read_bytes()
    for size in range(0, min(len(whole) - 200, 9 * 2560), 501):
        path.write_bytes(whole[:size])
        *before, last = read_twice(open_source(str(path)))
        assert last[0] == str(path)
        assert isinstance(last[1], str)
        assert name in last[1]
        wholes = [content for _, content, _ in before if isinstance(content, bytes)]
        assert wholes == contents[: len(wholes)]
        assert len(before) - len(wholes) <= 1


def test_what_is_no_tar_says_so(tmp_path: Path) -> None:
    for content in (b"", b"hello", bytes(range(256)) * 40):
        (tmp_path / "a.tar").write_bytes(content)
        assert [id_ for id_, _, _ in read_twice(open_source(str(tmp_path / "a.tar")))] == [str(tmp_path / "a.tar")]


def test_links_and_members_that_are_no_json_or_utf8_fail_alone(tmp_path: Path) -> None:
    members = [("a.jpg", b"a"), ("a.json", b"{"), ("b.jpg", b"b"), ("b.txt", b"\xff"), ("c.jpg", b"c")]
    path = write_tar(tmp_path / "a.tar", [*members, ("c.json", json.dumps([1]).encode())])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("d.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(link)
    found = {id_.rpartition("::")[2]: (content, fields) for id_, content, fields in read_twice(open_source(str(path)))}
    assert str(found["a"][0]).startswith("a.json in the tar: ")
    assert str(found["b"][0]).startswith("b.txt in the tar: ")
    assert found["c"] == (b"c", {"json": [1]})
    assert found["d"][0] == "d.jpg is a link or a sparse file in the tar"


def test_a_tar_that_shrinks_before_it_is_read_says_where(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"a" * 1000)])
    items = list(open_source(str(path)))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(Exception, match=r"a\.tar ends within a\.jpg"):
        items[0].read()


def test_many_files_with_one_beginning_are_many_items(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"frame.{n:04}.jpg", str(n).encode()) for n in range(200)])
    assert [content for _, content, _ in read_twice(open_source(str(path)))] == [str(n).encode() for n in range(200)]
