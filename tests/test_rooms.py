"""Where things stand: no crowded folders, and documents that name what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("broker_pipeline", "stages", "gateway", "export", "trials")
MOST_FILES = 15
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]*\w\.(?:py|md|toml|yaml|lua|json|png|conf)|(?:[\w-]+/){2,}")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


def folders() -> list[Path]:
    inits = (init for package in (*PACKAGES, "tests") for init in (ROOT / package).rglob("*.py"))
    return sorted({init.parent for init in inits})


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_holds_few_files_or_says_why(folder: Path) -> None:
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    init = folder / "__init__.py"
    said = ast.get_docstring(ast.parse(init.read_text())) if init.exists() else ""
    assert len(files) <= MOST_FILES or "many files" in (said or ""), (
        f"{len(files)} files: make rooms, or say in the __init__ docstring why there are so many files"
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_what_is_there(document: Path) -> None:
    text = document.read_text()
    paths = {path for code in _CODE.findall(text) for path in (_PATH.fullmatch(code) and [code]) or []}
    bases = (ROOT, ROOT / "broker_pipeline", ROOT / "stages", document.parent)
    missing = sorted(path for path in paths if not any((base / path).exists() for base in bases))
    missing += sorted(link for link in set(_LINK.findall(text)) if not (document.parent / link).exists())
    assert not missing, f"{document.name} names {missing}"
