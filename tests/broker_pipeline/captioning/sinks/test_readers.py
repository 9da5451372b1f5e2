"""What sinks write, read back by those that training scripts read with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.target import open_sink
from broker_pipeline.captioning.sources.item import broken
from broker_pipeline.errors import ConfigurationError, OutputError, UnreadableFileError
from tests.broker_pipeline.captioning.sinks.made_rows import HOSTILE, file_row, fill, line, table_rows, unreadable_row
from tests.kit.running.captioner import folder

SHORT = SinkSettings(shard_rows=4)
SHOWN = [text.encode("utf-8", "backslashreplace").decode() for text in HOSTILE]
"""Texts as files have them: nothing in UTF-8 stands for half a pair."""


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("datasets")
    found.disable_progress_bars()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_image_folder_has_its_metadata(tmp_path: Path, datasets: Any, ending: str) -> None:
    root = folder(tmp_path / "photos", 6)
    paths = sorted(root.rglob("*.png"))
    rows = [file_row(path, HOSTILE[number]) for number, path in enumerate(paths)]
    fill(open_sink(f"{root}/metadata.{ending}", SinkSettings(text_column="text")), rows)
    read = datasets.load_dataset("imagefolder", data_dir=str(root), split="train")
    assert sorted(row["text"] for row in read) == sorted(SHOWN[:6])
    assert read[0]["image"].size == (32, 32)


def test_a_folder_is_a_data_set_with_a_card(tmp_path: Path, datasets: Any) -> None:
    fill(open_sink(f"{tmp_path}/set/", SHORT), table_rows(10, lambda number: HOSTILE[number % len(HOSTILE)]))
    read = datasets.load_dataset(str(tmp_path / "set"), split="train")
    assert [row["caption"] for row in read] == [SHOWN[number % len(SHOWN)] for number in range(10)]
    assert [row["size"] for row in read] == list(range(10))
    assert read[3]["image"].getpixel((0, 0)) == (3, 0, 90)
    assert len(list((tmp_path / "set" / "data").glob("train-*.parquet"))) == 3
    assert "num_examples" in (tmp_path / "set" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_tars_are_read_by_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    fill(open_sink(f"{tmp_path}/out-%05d.tar", SHORT), table_rows(6))
    samples = [
        sample
        for shard in sorted(tmp_path.glob("*.tar"))
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil")
    ]
    assert [sample["txt"] for sample in samples] == [f"caption {number}" for number in range(6)]
    assert samples[5]["png"].getpixel((0, 0)) == (5, 0, 90)
    assert samples[0]["json"]["kind"] == "a"


def test_tables_are_read_by_pandas(tmp_path: Path) -> None:
    rows = table_rows(len(HOSTILE), lambda number: HOSTILE[number])
    readers = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda path: pd.read_json(path, lines=True)}
    for ending, read in readers.items():
        fill(open_sink(f"{tmp_path}/out.{ending}", SinkSettings()), rows)
        assert list(read(tmp_path / f"out.{ending}")["caption"]) == SHOWN, ending


@pytest.mark.parametrize("target", ["out-%05d.tar", "out-%05d.parquet", "set/"])
def test_a_run_that_goes_on_leaves_what_an_undisturbed_one_does(tmp_path: Path, target: str) -> None:
    rows = table_rows(10)
    fill(open_sink(f"{tmp_path}/once/{target}", SHORT), rows)
    fill(open_sink(f"{tmp_path}/twice/{target}", SHORT), rows[:6], is_whole=False)
    reads: list[str] = []

    def counted(number: int) -> bytes:
        reads.append(rows[number].item.id)
        return rows[number].item.read()

    again = table_rows(10)
    for number, row in enumerate(again):
        object.__setattr__(row.item, "read", lambda number=number: counted(number))
    fill(open_sink(f"{tmp_path}/twice/{target}", SHORT), again)
    assert digests(tmp_path / "twice") == digests(tmp_path / "once")
    assert len(reads) == 6, "the pictures of the first shard were read again"


def test_a_shorter_data_set_has_no_shards_of_the_longer_one(tmp_path: Path) -> None:
    fill(open_sink(f"{tmp_path}/out-%05d.tar", SHORT), table_rows(10))
    fill(open_sink(f"{tmp_path}/out-%05d.tar", SHORT), table_rows(3))
    assert len(list(tmp_path.glob("*.tar"))) == 1
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    assert (manifest["is_whole"], manifest["num_rows"]) == (True, 3)


@pytest.mark.parametrize("target", ["out.csv", "out.parquet", "out.jsonl"])
def test_what_is_not_whole_replaces_nothing(tmp_path: Path, target: str) -> None:
    path = tmp_path / target
    path.write_text("what was there")
    fill(open_sink(str(path), SinkSettings()), table_rows(5), is_whole=False)
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_failures_are_left_out_or_kept_with_their_reason(tmp_path: Path) -> None:
    rows = table_rows(3)
    rows[1] = type(rows[1])(rows[1].item, {"caption": line(rows[1].item.id, None, "failed")})
    for keep in (False, True):
        fill(open_sink(f"{tmp_path}/out.jsonl", SinkSettings(keep_failed=keep)), rows)
        read = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert len(read) == (3 if keep else 2)
    assert [row["error"] for row in read] == [None, "out of luck", None]


def test_a_picture_that_is_gone_is_told_when_the_rest_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="1 item could not be read again, or changed meanwhile, left out: gone#1"):
        fill(open_sink(f"{tmp_path}/out-%05d.tar", SHORT), [*table_rows(5), unreadable_row()])
    assert len(list(tmp_path.glob("*.tar"))) == 2


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("out.xyz", "it takes FOLDER/metadata.jsonl"),
        ("out-%d.tar", "NAME-%05d.tar"),
        ("out-%05d-%05d.tar", "with one number"),
        ("out-%05d.csv", "NAME-%05d.tar"),
        ("a-folder.csv", "is a directory"),
    ],
)
def test_a_target_that_means_nothing_is_refused(tmp_path: Path, target: str, words: str) -> None:
    (tmp_path / "a-folder.csv").mkdir()
    with pytest.raises(ConfigurationError, match=words):
        open_sink(f"{tmp_path}/{target}", SinkSettings())


def test_a_field_that_changed_makes_its_shard_anew(tmp_path: Path) -> None:
    fill(open_sink(f"{tmp_path}/out-%05d.tar", SHORT), table_rows(4))
    before = digests(tmp_path)
    rows = table_rows(4)
    object.__setattr__(rows[2].item, "fields", {"kind": "b", "size": 2})
    fill(open_sink(f"{tmp_path}/out-%05d.tar", SHORT), rows)
    assert digests(tmp_path)["out-00000.tar"] != before["out-00000.tar"]


def test_other_settings_leave_no_shards_of_before_and_all_that_others_made(tmp_path: Path) -> None:
    others = ["out-00007.tar", "out-99999.tar", "out-notes.tar"]
    for name in others:
        (tmp_path / name).write_text("another's")
    target = f"{tmp_path}/out-%05d.tar"
    fill(open_sink(target, SHORT), table_rows(12))
    other = SinkSettings(shard_rows=4, trigger="ohwx")
    fill(open_sink(target, other), table_rows(4), is_whole=False)  # killed after its first shard
    fill(open_sink(target, other), table_rows(4))
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["out-00000.tar", *others]
    assert {(tmp_path / name).read_text() for name in others} == {"another's"}


def test_a_manifest_of_somebody_names_no_other_files(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "mine.tar").touch()
    fill(open_sink(f"{tmp_path}/set/out-%05d.tar", SHORT), table_rows(3))
    manifest = tmp_path / "set" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("out-00000.tar", "../mine.tar"))
    fill(open_sink(f"{tmp_path}/set/out-%05d.tar", SHORT), [])
    assert (tmp_path / "mine.tar").exists()


def test_two_targets_in_one_folder_are_refused(tmp_path: Path) -> None:
    open_sink(f"{tmp_path}/typo-%05d.tar", SHORT)  # and the run was refused for something else
    fill(open_sink(f"{tmp_path}/a-%05d.tar", SHORT), table_rows(3))
    with pytest.raises(ConfigurationError, match="choose another folder"):
        open_sink(f"{tmp_path}/b-%05d.tar", SHORT)


def test_what_is_too_deep_is_said(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    rows = table_rows(1)
    object.__setattr__(rows[0].item, "fields", {"deep": deep})
    with pytest.raises(ConfigurationError, match="too deep"):
        fill(open_sink(f"{tmp_path}/out.jsonl", SinkSettings()), rows)


def test_what_failed_and_is_no_file_is_left_out_of_metadata(tmp_path: Path) -> None:
    [picture] = folder(tmp_path, 1).rglob("*.png")
    gone = Row(broken("in.csv#1", UnreadableFileError("it is gone")), {"caption": line("in.csv#1", None, "refused")})
    target = tmp_path / "metadata.jsonl"
    fill(open_sink(str(target), SinkSettings(keep_failed=True)), [file_row(picture), gone, file_row(picture, None)])
    rows = [json.loads(text) for text in target.read_text().splitlines()]
    assert [(row["caption"], row["error"]) for row in rows] == [("a picture", None), (None, "out of luck")]
