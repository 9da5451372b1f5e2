"""References to what stays where it is: which URLs are some, and what is read for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import pytest

from broker_pipeline.errors import ConfigurationError, MediaFetchError, MediaTooLargeError
from broker_pipeline.storage.media_roots import MediaRoots
from tests.kit.pictures import picture

CONTENT = picture(1)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a picture, alone and inside another file, and a link that leads out of it to another."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a b.png").write_bytes(CONTENT)
    (folder / "all.tar").write_bytes(b"x" * 512 + CONTENT + b"y" * 512)
    (tmp_path / "outside.png").write_bytes(CONTENT)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    return folder


def read(roots: MediaRoots, url: str) -> bytes:
    ref = roots.reference(url, "images[0]")
    assert ref is not None, url
    return roots.read(ref)


def test_files_and_parts_of_files_are_read(root: Path) -> None:
    roots = MediaRoots(["/none/such", str(root)])
    assert read(roots, f"{(root / 'a b.png').as_uri()}#sha256={SHA256}") == CONTENT
    part = f"offset=512&length={len(CONTENT)}"
    assert read(roots, f"{(root / 'all.tar').as_uri()}#{part}&sha256={SHA256}") == CONTENT
    assert read(roots, f" file://localhost{root}/../pictures/a%20b.png#sha256={SHA256}") == CONTENT


def test_what_is_behind_urls_is_read_through_fsspec() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/shared/a.png", CONTENT)
    files.pipe("/shared/all.tar", b"x" * 100 + CONTENT + b"y")
    roots = MediaRoots(["memory://shared/"], max_bytes=len(CONTENT))
    assert read(roots, f"memory://shared/a.png#sha256={SHA256}") == CONTENT
    assert read(roots, f"memory://shared/all.tar#sha256={SHA256}&offset=100&length={len(CONTENT)}") == CONTENT
    with pytest.raises(MediaFetchError, match="no such file"):
        read(roots, f"memory://shared/b.png#sha256={SHA256}")
    with pytest.raises(MediaTooLargeError):
        read(roots, f"memory://shared/all.tar#sha256={SHA256}")


def test_what_is_no_reference_is_fetched_as_ever(root: Path) -> None:
    roots = MediaRoots([str(root), "s3://bucket/a"])
    here = (root / "a b.png").as_uri()
    for url in (
        here,
        f"{here}#page=2",
        f"{(root.parent / 'outside.png').as_uri()}#sha256={SHA256}",
        f"{root.as_uri()}/%2e%2e/outside.png#sha256={SHA256}",
        f"{root.as_uri()}-too/a.png#sha256={SHA256}",
        f"https://example.com/a.png#sha256={SHA256}",
        f"s3://bucket/ab.png#sha256={SHA256}",
        f"s3://bucket/a/../b.png#sha256={SHA256}",
        f"s3://bucket/a/%2E%2e/b.png#sha256={SHA256}",
    ):
        assert roots.reference(url, "images[0]") is None, url
    assert MediaRoots().reference(f"{here}#sha256={SHA256}", "images[0]") is None


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (f"sha256={SHA256.upper()}", "64 hex digits"),
        (f"sha256={SHA256[1:]}", "64 hex digits"),
        ("offset=5&length=6", "64 hex digits"),
        (f"sha256={SHA256}&offset=-1", "whole numbers"),
        (f"sha256={SHA256}&length=1e3", "whole numbers"),
        (f"sha256={SHA256}&size=3", "nothing is called size"),
        (f"sha256={SHA256}&length=101", "more than 100 bytes"),
    ],
)
def test_wrong_facts_name_the_field(root: Path, facts: str, said: str) -> None:
    with pytest.raises(MediaFetchError if "more" not in said else MediaTooLargeError, match=said) as refused:
        MediaRoots([str(root)], 100).reference(f"{root.as_uri()}/a.png#{facts}", "images[3]")
    assert refused.value.field == "images[3]"


def test_a_file_of_another_host_names_the_field(root: Path) -> None:
    with pytest.raises(MediaFetchError, match="three slashes") as refused:
        MediaRoots([str(root)]).reference(f"file://server/share/a.png#sha256={SHA256}", "images[3]")
    assert refused.value.field == "images[3]"


def test_parts_are_of_roots_alone(root: Path) -> None:
    for roots in (MediaRoots(), MediaRoots([str(root)])):
        with pytest.raises(MediaFetchError, match="parts of files"):
            roots.reference("https://example.com/a.tar#offset=5&length=9", "images[0]")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("all.tar", "has changed since"),
        ("gone.png", "No such file"),
        (".", "Is a directory"),
        ("link.png", "not below"),
    ],
)
def test_what_cannot_be_read_or_is_another(root: Path, name: str, said: str) -> None:
    with pytest.raises(MediaFetchError, match=said):
        read(MediaRoots([str(root)]), f"{root.as_uri()}/{name}#sha256={SHA256}")


def test_a_worker_with_other_roots_reads_nothing(root: Path) -> None:
    ref = MediaRoots([str(root)]).reference(f"{(root / 'a b.png').as_uri()}#sha256={SHA256}", "images[0]")
    far = MediaRoots(["s3://bucket"]).reference(f"s3://bucket/a.png#sha256={SHA256}", "images[0]")
    assert ref is not None
    assert far is not None
    for each in (ref, far):
        with pytest.raises(MediaFetchError, match="--media-roots"):
            MediaRoots(["/none/such"]).read(each)


def test_a_folder_has_to_be_there(root: Path) -> None:
    MediaRoots([str(root), "s3://bucket"]).check()
    for wrong in ("pictures", str(root / "gone"), str(root / "all.tar")):
        with pytest.raises(ConfigurationError, match="--media-roots"):
            MediaRoots([wrong]).check()
