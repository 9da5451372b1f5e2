"""Lists of paths, in files and streams."""

import io
import os
from pathlib import Path

import pytest

from broker_pipeline.captioning.sources.open import open_source, open_sources
from broker_pipeline.captioning.sources.path_list import files_from
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.errors import InvalidRequestError
from tests.broker_pipeline.captioning.sources.read_items import read, read_twice


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for name in "abc":
        (tmp_path / "pics" / f"{name} {name}.png").write_bytes(name.encode())
    return tmp_path


def test_a_list_names_what_is_beside_it(pictures: Path) -> None:
    lines = ["pics/a a.png", "", str(pictures / "pics/b b.png"), "gone.png", "./pics/../pics/c c.png"]
    (pictures / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_twice(open_source(str(pictures / "list.txt"))) == [
        (f"{pictures}/pics/a a.png", b"a", {}),
        (f"{pictures}/pics/b b.png", b"b", {}),
        (f"{pictures}/gone.png", "No such file or directory", {}),
        (f"{pictures}/./pics/../pics/c c.png", b"c", {}),
    ]
    (pictures / "list.txt").write_text("")
    assert not list(open_source(str(pictures / "list.txt")))


def test_a_stream_names_files_from_the_working_directory(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    lines = files_from(io.BytesIO(b"pics/a a.png\npics/b b.png"))
    assert read_twice(lines) == [("pics/a a.png", b"a", {}), ("pics/b b.png", b"b", {})]
    odd = os.fsdecode(b"pics/\xff\n.png")
    Path(odd).write_bytes(b"odd")
    zeros = files_from(io.BytesIO(os.fsencode(odd) + b"\0pics/c c.png\0"), is_nul_separated=True)
    assert read_twice(zeros) == [(odd, b"odd", {}), ("pics/c c.png", b"c", {})]


def test_a_pipe_is_read_once(pictures: Path) -> None:
    out, into = os.pipe()
    with os.fdopen(into, "wb") as writer:
        writer.write(f"{pictures}/pics/a a.png\n".encode() * 300)
    with os.fdopen(out, "rb") as reader:
        source = files_from(reader, name="-")
        assert [read(item)[1] for item in source] == [b"a"] * 300
        with pytest.raises(InvalidRequestError, match="- can be read only once"):
            list(source)


def test_a_list_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\0" * 200_000)
    (found,) = read_twice(open_source(str(tmp_path / "a.txt")))
    assert found[0] == str(tmp_path / "a.txt")
    assert "are they separated by b'\\n'?" in str(found[1])


def test_lists_are_chained_and_shuffled(pictures: Path) -> None:
    lines = b"".join(f"{pictures}/pics/{name} {name}.png\n".encode() for name in "abc")

    def names(**settings: int) -> str:
        paths = [str(pictures / "pics" / "a a.png")]
        source = open_sources(paths, SourceSettings(**settings), lists=[files_from(io.BytesIO(lines))])
        return "".join(item.read().decode() for item in source)

    assert names() == "aabc"
    assert sorted(names(shuffle=3)) == list("aabc")
    assert names(shuffle=3) == names(shuffle=3)
