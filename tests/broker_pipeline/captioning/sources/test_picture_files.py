"""Which files are pictures, in which order."""

from pathlib import Path

import pytest

from broker_pipeline.captioning.sources.picture_files import find_pictures
from broker_pipeline.errors import ConfigurationError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(root: Path, found: list[Path]) -> list[str]:
    return [str(path.relative_to(root)) for path in found]


def test_folders_are_searched_in_order_and_hidden_files_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "._a.PNG", ".git/x.png", "sub/c.webp", "sub/deep/d.tiff"
    )
    assert names(tmp_path, find_pictures([tmp_path]).pictures) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tiff"]
    assert names(tmp_path, find_pictures([tmp_path], recursive=False).pictures) == ["a.PNG", "b.jpg"]


def test_what_is_left_out_is_counted_by_its_ending(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.txt", "sub/c.TXT", "d.mp4", "README", ".hidden", "e.jpg.part")
    found = find_pictures([tmp_path])
    assert found.left_out == {".txt": 2, ".mp4": 1, "": 1, ".part": 1}
    text = found.left_out_text()
    assert text.startswith("left out, as not named like pictures: 2 .txt, ")
    assert "1 without ending" in text
    assert not find_pictures([tmp_path / "b.txt", tmp_path / "a.jpg"]).left_out


@pytest.mark.parametrize(
    "name", ["a.heic", "a.HEIF", "a.avif", "a.ico", "a.ppm", "a.pfm", "a.jp2", "a.j2k", "a.jpe", "a.apng"]
)
def test_every_format_that_is_decoded_is_found(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    assert names(tmp_path, find_pictures([tmp_path]).pictures) == [name]


def test_named_files_keep_their_order_and_need_no_extension(tmp_path: Path) -> None:
    touch(tmp_path, "z", "a.jpg", ".h.jpg")
    paths = [tmp_path / "z", tmp_path / "a.jpg", tmp_path / ".h.jpg"]
    assert find_pictures(paths).pictures == paths


def test_a_file_is_taken_once_however_often_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    again = [tmp_path / "sub/../a.jpg", tmp_path, tmp_path / "sub", tmp_path / "a.jpg"]
    assert len(find_pictures(again).pictures) == 2


def test_links_to_files_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "real" / "z.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    assert len(find_pictures([tmp_path]).pictures) == 1


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nope\.jpg does not exist"):
        find_pictures([tmp_path / "nope.jpg"])
