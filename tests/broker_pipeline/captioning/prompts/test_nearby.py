"""What is read beside a picture."""

import os
from pathlib import Path

import pytest

from broker_pipeline.captioning.prompts.nearby import Nearby, folder_prompt, tags_beside
from broker_pipeline.captioning.prompts.text_file import MAX_BYTES, read_text
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import InvalidRequestError

ALL = frozenset({"caption", "tags"})


def write(root: Path, **texts: str) -> Item:
    for name, text in texts.items():
        (root / f"a.{name}").write_text(text, encoding="utf-8")
    return Item("a.jpg", bytes, path=root / "a.jpg")


@pytest.mark.parametrize(
    ("files", "texts"),
    [
        ({}, {}),
        ({"txt": " A cat on a mat.\n"}, {"caption": "A cat on a mat."}),
        ({"txt": "\ufeffold", "caption": "new"}, {"caption": "new"}),
        (
            {"txt": "1girl, long hair,  solo , "},
            {"caption": "1girl, long hair,  solo ,", "tags": "1girl, long hair, solo"},
        ),
        ({"txt": "A cat.", "tags": "cat\nmat, indoors\n"}, {"caption": "A cat.", "tags": "cat, mat, indoors"}),
        ({"txt": ""}, {}),
    ],
)
def test_captions_and_tags_beside_a_picture(tmp_path: Path, files: dict[str, str], texts: dict[str, str]) -> None:
    assert Nearby(ALL)(write(tmp_path, **files)) == texts


@pytest.mark.parametrize(
    ("text", "are_tags"),
    [
        ("a cat, a dog, a bird", True),
        ("blue_eyes, masterpiece, score_9", True),
        ("a cat, a dog", False),
        ("In the park, a man walks his dog, smiling, at dawn.", False),
        ("one, two, three\nfour", False),
        ("a table with a very long cloth, a cup, a plate", False),
    ],
)
def test_texts_that_look_like_tags(tmp_path: Path, text: str, are_tags: bool) -> None:
    write(tmp_path, txt=text)
    assert (tags_beside(tmp_path / "a.jpg") is not None) is are_tags


def test_only_what_templates_use_is_read(tmp_path: Path) -> None:
    item = write(tmp_path, txt="x")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    assert Nearby(frozenset({"name"}))(item) == {}
    with pytest.raises(InvalidRequestError, match=r"a\.txt: not UTF-8"):
        Nearby(ALL)(item)
    assert Nearby(ALL)(Item("a.parquet#1", bytes)) == {}


def test_the_nearest_prompt_up_to_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    deep = root / "cats/old"
    deep.mkdir(parents=True)
    (tmp_path / "prompt.txt").write_text("outside")
    roots = frozenset({root})
    assert folder_prompt(deep, roots) is None
    folder_prompt.cache_clear()
    (root / "prompt.txt").write_text("all {{ tags }}")
    (root / "cats/prompt.txt").write_text("cats\n")
    found = [folder_prompt(folder, roots) for folder in (deep, root / "cats", root / "dogs", root, tmp_path / "b")]
    assert [each and each.text for each in found] == ["cats", "cats", "all {{ tags }}", "all {{ tags }}", None]
    item = write(root, tags="x, y")
    assert Nearby(frozenset(), roots)(item) == {"tags": "x, y", "folder_prompt": "all {{ tags }}"}


def test_a_prompt_that_is_none_fails_its_own_pictures(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("{{ name")
    with pytest.raises(InvalidRequestError, match=r"prompt\.txt, line 1: "):
        folder_prompt(tmp_path, frozenset())


def test_relative_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "prompt.txt").write_text("here")
    found = folder_prompt(Path("sub"), frozenset({Path()}))
    assert found is not None
    assert found.text == "here"
    folder_prompt.cache_clear()


def test_files_that_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    for name, reason in [("large", "more than"), ("pipe", "not a regular file"), ("folder", "irectory")]:
        with pytest.raises(InvalidRequestError, match=rf"{name}\.txt: .*{reason}|{name}\.txt: not a regular"):
            read_text(tmp_path / f"{name}.txt")
    assert read_text(tmp_path / "large.txt/x.txt") is None
