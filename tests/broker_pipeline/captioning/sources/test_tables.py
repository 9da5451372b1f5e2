"""Tables of every form, by the writers that people use."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from pyarrow import feather, parquet

from broker_pipeline.captioning.sources.open import open_source
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.errors import ConfigurationError, UnreadableFileError
from tests.broker_pipeline.captioning.sources.read_items import picture, read_twice


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the ending says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix in {".csv", ".tsv"}:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        table = pa.Table.from_pylist(rows)
        write = {".parquet": parquet.write_table, ".feather": feather.write_feather, ".arrow": write_stream}
        write[path.suffix](table, str(path))
    return path


def write_stream(table: pa.Table, path: str) -> None:
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow", "csv", "tsv", "jsonl"])
def test_paths_are_beside_the_table_and_other_columns_are_fields(tmp_path: Path, ending: str) -> None:
    (tmp_path / "pics").mkdir()
    for n in range(100):
        (tmp_path / "pics" / f"{n}.png").write_bytes(picture(n))
    rows = [{"said": f'{n}, "so"', "file_name": f"pics/{n}.png"} for n in range(100)]
    rows[7]["file_name"], rows[8]["file_name"] = "pics/gone.png", ""
    rows[9]["file_name"] = str(tmp_path / "pics" / "9.png")
    path = write_rows(tmp_path / f"a.{ending}", rows)
    source = open_source(str(path))
    found = read_twice(source)
    assert [id_ for id_, _, _ in found] == [f"{path}#{n}" for n in range(100)]
    assert [fields for _, _, fields in found] == [{"said": f'{n}, "so"'} for n in range(100)]
    assert found[7][1] == f"{tmp_path}/pics/gone.png: No such file or directory"
    assert found[8][1] == "column file_name: nothing is in it"
    assert all(found[n][1] == picture(n) for n in range(100) if n not in {7, 8})
    assert next(iter(source)).path == tmp_path / "pics" / "0.png"
    assert source.count() == (100 if ending in {"parquet", "feather", "arrow"} else None)


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow"])
def test_bytes_are_pictures_and_so_are_mappings_that_hold_them(tmp_path: Path, ending: str) -> None:
    (tmp_path / "b.png").write_bytes(picture(2))
    rows: list[dict[str, Any]] = [{"image": {"bytes": picture(1), "path": "a.png"}, "n": 1}]
    rows += [{"image": {"bytes": None, "path": "b.png"}, "n": 2}, {"image": {"bytes": None, "path": None}, "n": 3}]
    path = write_rows(tmp_path / f"a.{ending}", [*rows, {"image": None, "n": 4}])
    found = read_twice(open_source(str(path)))
    assert [content for _, content, _ in found] == [picture(1), picture(2), *["column image: nothing is in it"] * 2]
    assert [fields for _, _, fields in found] == [{"n": n} for n in range(1, 5)]
    plain = write_rows(tmp_path / f"b.{ending}", [{"other": picture(n), "jpg": picture(n + 1)} for n in range(3)])
    assert [content for _, content, _ in read_twice(open_source(str(plain)))] == [picture(n) for n in range(1, 4)]
    asked = read_twice(open_source(str(plain), SourceSettings(image_column="other")))
    assert [content for _, content, _ in asked] == [picture(n) for n in range(3)]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv", "jsonl"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, ending: str) -> None:
    path = write_rows(tmp_path / f"a.{ending}", [{"x": "1", "y": "2"}])
    with pytest.raises(ConfigurationError, match=rf"--image-column pic: .*a\.{ending} has no such column.* x, y"):
        list(open_source(str(path), SourceSettings(image_column="pic")))
    with pytest.raises(ConfigurationError, match=r"which column of .* --image-column says it, of x, y"):
        list(open_source(str(path)))


def test_cells_that_are_no_picture_fail_alone(tmp_path: Path) -> None:
    rows = [{"image": 3}, {"image": ["a", "b"]}, {"image": "a\0b"}, {"other": 1}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    said = [str(content) for _, content, _ in read_twice(open_source(str(path)))]
    assert said[:2] == [f"column image: it holds a {kind}, and no picture" for kind in ("int", "list")]
    assert "null" in said[2]
    assert said[3] == "column image: nothing is in it"


def test_lines_that_are_broken_fail_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    good = b'{"path": "a.png"}\n'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"{\n\n[1]\n" + b'{"path": "\xff"}\n' + good)
    found = read_twice(open_source(str(tmp_path / "a.jsonl")))
    assert [id_.rpartition("#")[2] for id_, _, _ in found] == ["0", "1", "3", "4", "5"]
    assert [content for _, content, _ in found if isinstance(content, bytes)] == [b"a", b"a"]
    assert str(found[1][1]).startswith("line 2 is no JSON object")
    long = f"{'x' * 200_000}"
    (tmp_path / "a.csv").write_bytes(
        b"path,said\r\na.png,1\r\na.png,\xff\r\na.png,1,2\r\n" + f"a.png,{long}\r\n".encode() + b"a.png\r\n"
        b'a.png,"open\r\n'
    )
    found = read_twice(open_source(str(tmp_path / "a.csv")))
    assert [id_.rpartition("#")[2] for id_, _, _ in found] == ["0", "1", "2", "3", "4", "5"]
    assert found[1][1] == "the row is no UTF-8"
    assert found[2][1] == "the row has more cells than the header"
    assert "field limit" in str(found[3][1])
    assert found[4][1:] == (b"a", {"said": None})
    assert "unexpected end" in str(found[5][1])


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow"])
def test_a_table_that_is_cut_off_is_told_and_what_is_before_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write_rows(path, [{"image": picture(n)} for n in range(50)])
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:size])
        found = read_twice(open_source(str(path)))
        assert isinstance(found[-1][1], str)
        assert found[-1][1].startswith(f"{path}: ")
        assert len(found) == 1
    assert open_source(str(path)).count() is None


def test_a_row_group_that_is_broken_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"image": bytes([n]) * 1000} for n in range(30)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    found = read_twice(open_source(str(path)))
    assert [id_.rpartition("#")[2] for id_, _, _ in found] == [*map(str, range(11)), *map(str, range(20, 30))]
    assert isinstance(found[10][1], str)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_cell_that_is_broken_costs_no_other_row(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    table = pa.Table.from_pylist([{"image": picture(n), "said": f"text-{n:02}"} for n in range(40)])
    if ending == "parquet":
        parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    else:
        write_stream(table, str(path))
    path.write_bytes(path.read_bytes().replace(b"text-07", b"text-\xff7"))
    found = read_twice(open_source(str(path)))
    assert [content for _, content, _ in found[:7] + found[8:]] == [picture(n) for n in range(40) if n != 7]
    assert "can't decode" in str(found[7][1])


def test_empty_tables_have_no_items_and_empty_files_say_so(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("image\n")
    (tmp_path / "a.jsonl").write_text("\n")
    assert not any(list(open_source(str(tmp_path / f"a.{ending}"))) for ending in ("parquet", "csv", "jsonl"))
    (tmp_path / "b.csv").write_text("")
    assert read_twice(open_source(str(tmp_path / "b.csv"))) == [(str(tmp_path / "b.csv"), "the file is empty", {})]


def test_saved_data_sets_are_read_split_after_split(tmp_path: Path) -> None:
    features = Features({"image": Image(), "n": Value("int64")})
    splits = {
        name: Dataset.from_list([{"image": {"bytes": picture(n)}, "n": n} for n in numbers], features=features)
        for name, numbers in {"train": range(7), "test": range(7, 10)}.items()
    }
    DatasetDict(splits).save_to_disk(tmp_path / "both", num_shards={"train": 2, "test": 1})
    splits["train"].save_to_disk(tmp_path / "one")
    both, one = open_source(str(tmp_path / "both")), open_source(str(tmp_path / "one"))
    assert [found[1:] for found in read_twice(both)] == [(picture(n), {"n": n}) for n in range(10)]
    assert [item.id for item in both][3:5] == [
        f"{tmp_path}/both/train/data-00000-of-00002.arrow#3",
        f"{tmp_path}/both/train/data-00001-of-00002.arrow#0",
    ]
    assert [found[1:] for found in read_twice(one)] == [(picture(n), {"n": n}) for n in range(7)]
    assert (both.count(), one.count()) == (10, 7)
    (tmp_path / "both/train/data-00001-of-00002.arrow").unlink()
    said = [content for _, content, _ in read_twice(both) if isinstance(content, str)]
    assert len(said) == 1
    assert "data-00001-of-00002.arrow: " in said[0]
    (tmp_path / "one/state.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"state\.json of a saved data set: .*_data_files"):
        open_source(str(tmp_path / "one"))


@pytest.mark.parametrize("ending", ["csv", "parquet", "feather"])
def test_columns_of_one_name_are_told(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    table = pa.Table.from_arrays([pa.array(["a.png"]), pa.array(["x"]), pa.array(["y"])], names=["path", "tag", "tag"])
    if ending == "csv":
        path.write_text("path,tag,tag\na.png,x,y\n")
    elif ending == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    [item] = open_source(str(path))
    with pytest.raises(UnreadableFileError, match="two columns are called tag"):
        item.read()


def test_a_key_twice_in_an_object_fails_its_row_by_line_and_key(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    path = tmp_path / "a.jsonl"
    texts = ['{"path": "a.png"}', '{"path": "a.png", "path": "b.png"}', '{"path": "a.png", "at": {"x": 1, "x": 2}}']
    path.write_text("\n".join([*texts, texts[0]]))
    found = read_twice(open_source(str(path)))
    assert [content for _, content, _ in found] == [
        picture(1),
        "line 2 is no JSON object: the key 'path' is there twice",
        "line 3 is no JSON object: the key 'x' is there twice",
        picture(1),
    ]


def test_a_column_of_numbers_is_not_guessed_to_have_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "a.jsonl").write_text('{"image": 17, "path": "a.png"}\n')
    assert [found[1] for found in read_twice(open_source(str(tmp_path / "a.jsonl")))] == [picture(1)]
    with pytest.raises(ConfigurationError, match=r"--image-column image: numbers are in it.* has image, path"):
        list(open_source(str(tmp_path / "a.jsonl"), SourceSettings(image_column="image")))
