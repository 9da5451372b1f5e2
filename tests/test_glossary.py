"""The glossary's words are in the code, and those that it retired are nowhere."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
PACKAGES = ("broker_pipeline", "stages", "gateway", "export", "trials")
ENDINGS = (".py", ".md", ".toml", ".yaml", ".lua", ".conf", ".html")
_CODE = re.compile(r"`([^`]+)`")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its head."""
    _, _, text = GLOSSARY.read_text().partition(f"# {heading}\n")
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


NAMES = [name for row in rows("Glossary") for name in _CODE.findall(row[2])]
RETIRED = [word.strip() for row in rows("Retired") for word in row[0].split(",")]


@cache
def texts(*folders: str) -> dict[str, str]:
    """Return the tracked texts below some folders, all without any, by path."""
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, check=True, capture_output=True, text=True)
    paths = [
        ROOT / name for name in listed.stdout.splitlines() if name.endswith(ENDINGS) or name.startswith("scripts/")
    ]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths if path.is_file()}


def test_the_tables_are_read() -> None:
    assert len(NAMES) > 40
    assert {"card", "pledge", "put back"} <= set(RETIRED)


@pytest.mark.parametrize("name", NAMES)
def test_a_word_is_in_the_code(name: str) -> None:
    assert any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts(*PACKAGES).values()), f"no {name} in code"


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_nowhere(word: str) -> None:
    found = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])", re.IGNORECASE)
    allowed = {str(GLOSSARY.relative_to(ROOT)), str(Path(__file__).relative_to(ROOT))}
    places = [
        f"{path}:{text[: match.start()].count(chr(10)) + 1}"
        for path, text in texts().items()
        if path not in allowed
        for match in found.finditer(text)
    ]
    assert not places, f"'{word}' is retired (docs/glossary.md), and stands at {places[:10]}"
