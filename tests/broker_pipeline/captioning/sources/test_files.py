"""Which files are taken, in which order."""

import os
from pathlib import Path

import pytest

from broker_pipeline.captioning.sources.chain import Chain
from broker_pipeline.captioning.sources.files import left_out_text
from broker_pipeline.captioning.sources.open import open_sources
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.errors import ConfigurationError, InvalidRequestError
from tests.broker_pipeline.captioning.sources.read_items import picture, read_twice


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(root: Path, source: Chain) -> list[str]:
    assert source.count() == len(list(source))
    return [os.path.relpath(item.id, root) for item in source]


def opened(*paths: Path, **settings: object) -> Chain:
    return open_sources([str(path) for path in paths], SourceSettings(**settings))  # type: ignore[arg-type]


def test_folders_are_searched_in_order_and_hidden_files_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "._a.PNG", ".git/x.png", "sub/c.webp", "sub/deep/d.tiff"
    )
    assert names(tmp_path, opened(tmp_path)) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tiff"]
    assert names(tmp_path, opened(tmp_path, recursive=False)) == ["a.PNG", "b.jpg"]


def test_items_read_their_file_and_know_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    source = opened(tmp_path)
    assert read_twice(source) == [(str(tmp_path / "a.png"), picture(1), {})]
    assert next(iter(source)).path == tmp_path / "a.png"


def test_what_is_left_out_is_counted_by_its_ending(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.txt", "sub/c.TXT", "d.mp4", "README", ".hidden", "e.jpg.part")
    found = opened(tmp_path)
    assert found.count() == 1
    assert found.left_out == {".txt": 2, ".mp4": 1, "": 1, ".part": 1}
    text = left_out_text(found.left_out)
    assert text.startswith("left out, as not named like pictures: 2 .txt, ")
    assert "1 without ending" in text
    named = opened(tmp_path / "README", tmp_path / "a.jpg")
    assert named.count() == 2
    assert not named.left_out


@pytest.mark.parametrize(
    "name", ["a.heic", "a.HEIF", "a.avif", "a.ico", "a.ppm", "a.pfm", "a.jp2", "a.j2k", "a.jpe", "a.apng"]
)
def test_every_format_that_is_decoded_is_found(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    assert names(tmp_path, opened(tmp_path)) == [name]


def test_tars_in_a_folder_are_said_to_be_left_out_and_how_they_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.tar", "c.tar", "d.txt")
    source = opened(tmp_path)
    assert names(tmp_path, source) == ["a.png"]
    said = left_out_text(source.left_out)
    assert "2 .tar, 1 .txt" in said
    assert said.endswith("read where they are named: 'FOLDER/*.tar'")


def test_videos_are_taken_where_they_are_asked_for_or_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.MP4", "c.webm")
    assert [item.is_video for item in opened(tmp_path, videos=True)] == [False, True, True]
    assert [item.is_video for item in opened(tmp_path / "b.MP4")] == [True]


def test_named_files_keep_their_order_and_need_no_extension(tmp_path: Path) -> None:
    touch(tmp_path, "z", "a.jpg", ".h.jpg")
    paths = [tmp_path / "z", tmp_path / "a.jpg", tmp_path / ".h.jpg"]
    assert [item.path for item in opened(*paths)] == paths


def test_a_file_is_taken_once_however_often_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    found = opened(tmp_path / "sub/../a.jpg", tmp_path, tmp_path / "sub", tmp_path / "a.jpg")
    assert len(read_twice(found)) == 2
    assert found.num_repeated == 3


def test_links_to_files_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "real" / "z.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    (tmp_path / "real" / "gone.jpg").symlink_to(tmp_path / "nothing")
    found = read_twice(opened(tmp_path, min_bytes=1))
    assert [content for _, content, _ in found] == [b"real/a.jpg", "No such file or directory"]


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nope\.jpg does not exist"):
        opened(tmp_path / "nope.jpg")


def test_patterns_choose_by_path_and_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "sub/a.jpg", "sub/b.png")
    assert names(tmp_path, opened(tmp_path, include=("a.*",))) == ["a.jpg", "sub/a.jpg"]
    assert names(tmp_path, opened(tmp_path, include=("sub/*",), exclude=("*.png",))) == ["sub/a.jpg"]
    assert names(tmp_path, opened(tmp_path, exclude=("a.jpg",))) == ["b.jpg", "sub/b.png"]


def test_sizes_and_ages_choose(tmp_path: Path) -> None:
    for index, name in enumerate("abc"):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(bytes(10 * index))
        os.utime(path, (1000 + index, 1000 + index))

    def chosen(**settings: object) -> list[str]:
        made = SourceSettings(**settings)  # type: ignore[arg-type]
        return names(tmp_path, open_sources([str(tmp_path)], made, clock=lambda: 1003.0))

    assert chosen(min_bytes=10) == ["b.jpg", "c.jpg"]
    assert chosen(min_bytes=1, max_bytes=10) == ["b.jpg"]
    assert chosen(max_bytes=0) == ["a.jpg"]
    assert chosen(newer_than_s=2) == ["b.jpg", "c.jpg"]
    assert chosen(older_than_s=2) == ["a.jpg", "b.jpg"]


def test_filters_without_a_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(InvalidRequestError, match="--min-bytes chooses among the files of folders"):
        opened(tmp_path / "a.jpg", min_bytes=1)
    with pytest.raises(InvalidRequestError, match="--newer-than-s chooses"):
        opened(tmp_path / "a.jpg", newer_than_s=1.0)


def test_a_seed_shuffles_all_folders_together(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/{number:02}.jpg" for folder in "ab" for number in range(20)))
    folders = (tmp_path / "a", tmp_path / "b")
    shuffled = names(tmp_path, opened(*folders, shuffle=1))
    assert shuffled == names(tmp_path, opened(*folders, shuffle=1))
    assert shuffled != names(tmp_path, opened(*folders, shuffle=2))
    assert sorted(shuffled) == names(tmp_path, opened(*folders))
    assert {name[0] for name in shuffled[:20]} == {"a", "b"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_listed_is_an_item_that_fails(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        source = opened(tmp_path)
        assert [content for _, content, _ in read_twice(source)] == [b"a.jpg", "Permission denied"]
        assert source.unreadable == {str(tmp_path / "closed"): "Permission denied"}
        assert source.count() == 2
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_names_that_are_no_utf8_keep_their_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/\xff.jpg")
    Path(name).write_bytes(b"x")
    assert read_twice(opened(tmp_path)) == [(name, b"x", {})]
