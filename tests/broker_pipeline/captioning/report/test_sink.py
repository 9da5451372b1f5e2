"""The page as a file: what stands in it, when it is there, and what nobody's text can do to it."""

from __future__ import annotations

import os
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import pytest

from broker_pipeline.captioning.report.sink import ReportSink
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.errors import ConfigurationError, OutputError
from tests.broker_pipeline.captioning.report.rows import failed, line, row
from tests.kit.fake_clock import FakeClock

HOSTILE = (
    "</p></style><script>alert(1)</script><img src='http://evil.example/x'>\" onload=\"x \u202e \udcff \ud83d {{ 7*7 }}"
)


class Text(HTMLParser):
    """A page's text and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def written(path: Path, rows: list[Row], *, title: str = "pictures", is_whole: bool = True) -> str:
    sink = ReportSink(path, title, FakeClock())
    for each in rows:
        sink.add(each)
    sink.close(is_whole=is_whole)
    return path.read_text("utf-8")


def test_a_page_says_what_became_of_the_run(tmp_path: Path) -> None:
    rows = [row(id=f"{number}.png") for number in range(1500)]
    rows += [row(failed(), id="bad.png"), row(line(guard="too long"), id="marked.png")]
    text = Text(written(tmp_path / "new" / "report.html", rows)).text
    for said in (
        "items 1,502",
        "captioned 1,501 99.9%",
        "of them marked by a guard 1 0.1%",
        "1970-01-01 00:00:00",
        "qwen3-vl",
        "f" * 64,
        "Describe this.",
        "median 3, 90% have at most 3 (1,501 captions)",
        "a red bicycle 1,501 100.0%",
        "stop 1,502 100.0%",
        "Waiting 0.50 s 0.50 s 1,502",
        "99.9% of captions are, letter for letter",
        "too long marked, and kept 1",
        "compute 1 bad.png out of memory",
        "24 items to look at",
    ):
        assert said in text
    assert "did not come to its end" not in text


def test_each_question_has_a_part_of_its_own(tmp_path: Path) -> None:
    rows = [row(line(question="long", prompt=f"{n}?"), line(question="short", caption="bicycle")) for n in range(7)]
    text = Text(written(tmp_path / "report.html", rows)).text
    assert text.index("Question: long") < text.index("… and others") < text.index("Question: short")
    assert "1 item to look at" in text


@pytest.mark.parametrize("rows", [[], [row(failed())], [row(line(caption="")), Row(row().item, {})]])
def test_a_run_that_came_to_little_has_a_page(tmp_path: Path, rows: list[Row]) -> None:
    text = Text(written(tmp_path / "report.html", rows, is_whole=False)).text
    assert "The run did not come to its end." in text
    assert f"items {len(rows)}" in text


def test_text_stays_text_whoever_wrote_it(tmp_path: Path) -> None:
    hostile = {"guard": HOSTILE, "prompt": HOSTILE, "model": HOSTILE, "fingerprint": HOSTILE, "finish_reason": HOSTILE}
    rows = [
        row(line(caption=HOSTILE, question=HOSTILE, **hostile), line(question="b"), id=HOSTILE),
        row(failed(code=HOSTILE, message=HOSTILE, question="b"), line(question=HOSTILE), id=f"{HOSTILE} failed"),
        row(line(question="b", prompt="another"), id="long" * 100_000),
        row(line(caption="word " * 500_000, question="b"), id="b.png"),
    ]
    page = written(tmp_path / "report.html", rows, title=HOSTILE)
    seen = Text(page)
    assert not seen.tags & {"script", "iframe", "object", "a", "form", "input", "base"}
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in {"style", "srcdoc"}]
    assert all(value and value.startswith("data:") for name, value in seen.attributes if name in {"src", "href"})
    assert seen.text.count("<script>alert(1)</script>") > 10
    assert "\u202e" not in page
    assert "{{ 7*7 }}" in seen.text
    assert len(page) < 300_000


def test_the_same_rows_make_the_same_page(tmp_path: Path) -> None:
    rows = [row(line(caption=f"a caption {number % 70}"), id=f"{number}.png") for number in range(300)]
    assert written(tmp_path / "a.html", rows) == written(tmp_path / "b.html", rows)


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    sink = ReportSink(tmp_path / "report.html", "pictures", FakeClock())

    def add(start: int, stop: int) -> int:
        for number in range(start, stop):
            text = f"picture {number} shows {'much ' * (number % 50)}"
            lines = line(caption=text, prompt=text), failed(code=text, message=text, question="b", guard=text)
            sink.add(row(*lines, id=text))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        filled = add(0, 6_000)
        assert add(6_000, 20_000) - filled < 2 * 2**20
    finally:
        tracemalloc.stop()
    sink.close(is_whole=True)
    assert len((tmp_path / "report.html").read_bytes()) < 2**20


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OutputError, match=r"No space left on device.*--report") as raised:
        written(path, [row()])
    assert raised.value.field == "report"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_of_failures_alone_is_written_where_there_is_none_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    page = written(path, [row(failed())])
    assert "out of memory" in page
    with pytest.raises(OutputError, match=r"--report .*earlier run wrote is kept, and --out has the failures"):
        written(path, [row(failed(message="another"))])
    assert written(path, [row(failed(message="another"))], is_whole=False) == page
    assert "another" in written(path, [row(), row(failed(message="another"))])


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--report"):
        written(tmp_path / "file" / "report.html", [])


def test_what_is_no_file_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a directory"):
        ReportSink(tmp_path, "pictures")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link = tmp_path / "latest.html"
    link.symlink_to("report.html")
    written(link, [row()])
    assert link.is_symlink()
    assert re.match("<!doctype html>", (tmp_path / "report.html").read_text())
