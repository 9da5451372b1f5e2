"""Texts beside pictures, in every mode, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.sidecars import Mode, Sidecars
from broker_pipeline.errors import ConfigurationError, NoPlaceError
from tests.broker_pipeline.captioning.sinks.made_rows import file_row, fill, line, table_rows
from tests.kit.running.captioner import folder


def sidecars(
    mode: Mode = "overwrite", mirror: Path | None = None, roots: tuple[Path, ...] = (), **settings: str
) -> Sidecars:
    return Sidecars(".txt", mirror, mode, SinkSettings(**settings), roots)


@pytest.mark.parametrize(
    ("mode", "after"),
    [("overwrite", "new"), ("skip", "old"), ("missing", "old"), ("append", "old, new"), ("prepend", "new, old")],
)
def test_a_mode_does_the_same_twice_as_once(tmp_path: Path, mode: Mode, after: str) -> None:
    [picture] = folder(tmp_path, 1).rglob("*.png")
    picture.with_suffix(".txt").write_text("old\n" if mode in {"overwrite", "append", "prepend"} else "old")
    for _ in range(2):
        sink = sidecars(mode)
        fill(sink, [file_row(picture, "new")])
        assert picture.with_suffix(".txt").read_text() == after
    assert sink.num_left == (mode in {"skip", "missing"})
    assert len(list(picture.parent.iterdir())) == 2


def test_a_mirror_has_the_same_folders_and_questions_their_names(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", 3)
    rows = [file_row(path, path.stem) for path in sorted(root.rglob("*.png"))]
    rows[0] = Row(rows[0].item, {**rows[0].lines, "short": line("x", "brief", question="short")})
    fill(sidecars(mirror=tmp_path / "texts", roots=(root,), trigger="ohwx"), [*rows, table_rows(1)[0]])
    texts = {
        str(path.relative_to(tmp_path / "texts")): path.read_text() for path in (tmp_path / "texts").rglob("*.txt")
    }
    assert texts == {
        "part-0/000.txt": "ohwx, 000",
        "part-0/000.short.txt": "ohwx, brief",
        "part-1/001.txt": "ohwx, 001",
        "part-2/002.txt": "ohwx, 002",
        "in.parquet#0.txt": "ohwx, caption 0",
    }


def test_what_has_no_file_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--sidecar-dir says where"):
        fill(sidecars(), table_rows(1))
    with pytest.raises(ConfigurationError, match="takes an ending"):
        Sidecars("a/b", None, "skip", SinkSettings(), ())


def test_nothing_is_added_to_what_is_no_text(tmp_path: Path) -> None:
    [picture] = folder(tmp_path, 1).rglob("*.png")
    picture.with_suffix(".txt").write_bytes(b"\xff\xfe")
    with pytest.raises(NoPlaceError, match="is no UTF-8"):
        fill(sidecars("append"), [file_row(picture)])
    picture.with_suffix(".txt").unlink()
    picture.with_suffix(".txt").mkdir()
    with pytest.raises(NoPlaceError, match=r"\.txt: Is a directory"):
        fill(sidecars(), [file_row(picture)])


def test_a_persons_own_text_stays_whatever_it_is(tmp_path: Path) -> None:
    [picture] = folder(tmp_path, 1).rglob("*.png")
    for own in (b"\xea\xee\xf2", b""):
        picture.with_suffix(".txt").write_bytes(own)
        fill(sidecars("skip"), [file_row(picture)])
        assert picture.with_suffix(".txt").read_bytes() == own


def test_of_two_pictures_with_one_sidecar_the_first_has_it_and_the_other_is_named(tmp_path: Path) -> None:
    [picture] = folder(tmp_path, 1).rglob("*.png")
    other = picture.with_suffix(".jpg")
    other.write_bytes(picture.read_bytes())
    with pytest.raises(NoPlaceError, match=r"000.txt is about .*000.jpg, not .*000.png"):
        fill(sidecars(), [file_row(other, "first"), file_row(picture, "second")])
    assert picture.with_suffix(".txt").read_text() == "first"
