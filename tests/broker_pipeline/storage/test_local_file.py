"""Files that requests name: below one directory, whatever links say, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker_pipeline.errors import MediaFetchError, MediaTooLargeError
from broker_pipeline.storage.local_file import is_file_url, read_local_file


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A directory with pictures, links out of it and within it, and a pipe; next to it a secret."""
    directory = tmp_path / "media"
    (directory / "a b é").mkdir(parents=True)
    (directory / "a b é" / "1.jpg").write_bytes(b"one")
    (directory / "inside.jpg").symlink_to(directory / "a b é" / "1.jpg")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "media-too").mkdir()
    (tmp_path / "media-too" / "2.jpg").write_bytes(b"two")
    (directory / "outside.jpg").symlink_to(tmp_path / "secret")
    os.mkfifo(directory / "pipe")
    return directory


def read(media: Path, url: str, max_bytes: int = 100, **part: int) -> bytes:
    return read_local_file(url, ("/none/such", str(media)), "--flag", max_bytes=max_bytes, field="images[0]", **part)


def test_files_below_the_directory(media: Path) -> None:
    for url in (
        (media / "a b é" / "1.jpg").as_uri(),
        f"file://localhost{media}/a%20b é/1.jpg",
        f" FILE:{media}/inside.jpg",
    ):
        assert is_file_url(url)
        assert read(media, url) == b"one"
    assert not is_file_url("https://example.com/file:")


@pytest.mark.parametrize(
    "path",
    [
        "secret",
        "media/../secret",
        "media/%2e%2e/secret",
        "media/outside.jpg",
        "media-too/2.jpg",
        "media",
        "media/none.jpg",
        "media/pipe",
        "media/a\0b",
        "media/%00",
        "media/" + "x" * 300,
    ],
)
def test_nothing_else(media: Path, path: str) -> None:
    with pytest.raises(MediaFetchError) as refused:
        read(media, f"file://{media.parent}/{path}")
    assert refused.value.field == "images[0]"


def test_a_file_of_another_host(media: Path) -> None:
    with pytest.raises(MediaFetchError, match="three slashes"):
        read(media, "file://server/share/a.jpg")


def test_a_part(media: Path) -> None:
    url = (media / "inside.jpg").as_uri()
    assert [read(media, url, 3, offset=1), read(media, url, 3, offset=1, num_bytes=1)] == [b"ne", b"n"]
    assert read(media, url, 3, offset=9) == b""


def test_what_is_too_large(media: Path) -> None:
    url = (media / "inside.jpg").as_uri()
    assert read(media, url, 3) == b"one"
    with pytest.raises(MediaTooLargeError):
        read(media, url, 2)
