"""Figures in documents are those of the receipts that they link.

A table that is checked stands below a line of JSON pointers, one for each column after the first:

    <!-- receipts: /seconds /worst/layers/difference/relative -->
    | checkpoint                           | time  | decoder layers |
    |---|---|---|
    | [2B](receipts/parity-2b-shape.json)  | 245 s | 0              |

The first cell of a row links its receipt, or a part of it: `receipts/one.json#/components/stage`.
A number is right when it is the receipt's, rounded to the digits it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if "<!-- receipts:" in path.read_text()]

_TABLE = re.compile(r"^<!-- receipts: (.+) -->\n\|.*\n\|[-:|]+\n((?:\|.*\n)+)", re.MULTILINE)
_LINK = re.compile(r"\[.+\]\(((?:docs/)?receipts/[^)#]+)#?([^)]*)\)")
_NUMBER = re.compile(r"(-?[\d,]*\.?\d+(?:e-?\d+)?) ?(|%|[KMG]?B|s|min|h)")
_UNITS = {"": 1, "B": 1, "s": 1, "%": "0.01", "KB": 1e3, "MB": 1e6, "GB": 1e9, "min": 60, "h": 3600}


def receipts() -> list[Path]:
    return sorted((DOCS / "receipts").glob("*.json"))


def wrong_cells(text: str, directory: Path) -> Iterator[str]:
    """Yield what is wrong in the checked tables of a document that lies in `directory`."""
    for pointers, rows in _TABLE.findall(text):
        for row in rows.splitlines():
            first, *cells = (cell.strip() for cell in row.strip("|").split("|"))
            name, part = _LINK.fullmatch(first).groups()
            receipt = value_at(json.loads((directory / name).read_text()), part)
            for pointer, cell in zip(re.split(" (?=/)", pointers), cells, strict=True):
                if not is_right(cell, value := value_at(receipt, pointer)):
                    yield f"{first}: {cell} is {value} at {pointer}"


def value_at(receipt: Any, pointer: str) -> Any:
    for step in pointer.split("/")[1:]:
        receipt = receipt[int(step) if isinstance(receipt, list) else step]
    return receipt


def is_right(cell: str, value: object) -> bool:
    number = _NUMBER.fullmatch(cell)
    if number is None or isinstance(value, (str, bool)) or value is None:
        return cell == {None: "none", True: "yes", False: "no"}.get(value, str(value))
    shown, exact = Decimal(number[1].replace(",", "")), Decimal(str(value)) / Decimal(_UNITS[number[2]])
    last_digit = Decimal(1).scaleb(shown.as_tuple().exponent) if shown else Decimal(0)
    return abs(shown - exact) <= last_digit / 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_says_what_its_receipts_say(document: Path) -> None:
    text = document.read_text()
    assert len(_TABLE.findall(text)) == text.count("<!-- receipts:"), "a table is not written as this test reads it"
    assert not list(wrong_cells(text, document.parent))


def test_every_receipt_is_cited() -> None:
    links = [(document.parent, _LINK.findall(document.read_text())) for document in DOCUMENTS]
    assert {directory / name for directory, found in links for name, _ in found} == {*receipts()}


@pytest.mark.parametrize(
    ("cell", "value", "expected"),
    [
        ("245 s", 244.98, True),
        ("245 s", 243.4, False),
        ("4.3 GB", 4_255_139_664, True),
        ("4.3 GB", 4_155_139_664, False),
        ("6.0e-8", 5.96e-8, True),
        ("0", 0.0, True),
        ("0", 1e-9, False),
        ("1,234", 1234, True),
        ("50 %", 0.496, True),
        ("4 min", 250.0, True),
        ("yes", True, True),
        ("no", True, False),
        ("none", None, True),
        ("bfloat16", "bfloat16", True),
    ],
)
def test_a_number_is_compared_in_the_digits_that_it_has(cell: str, value: object, expected: bool) -> None:
    assert is_right(cell, value) is expected


def test_a_wrong_figure_is_named(tmp_path: Path) -> None:
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "one.json").write_text('{"seconds": 3.2, "parts": [{"name": "layers.0"}]}')
    rows = "<!-- receipts: /seconds /parts/0/name -->\n| of | time | part |\n|---|---|---|\n"
    right, wrong = (f"| [one](receipts/one.json) | {seconds} s | layers.0 |\n" for seconds in (3, 4))
    assert list(wrong_cells(rows + right, tmp_path)) == []
    assert list(wrong_cells(rows + wrong, tmp_path)) == ["[one](receipts/one.json): 4 s is 3.2 at /seconds"]


def test_a_row_may_be_of_a_part_of_its_receipt(tmp_path: Path) -> None:
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "one.json").write_text('{"parts": {"a": {"seconds": 3.2}, "b": {"seconds": 5}}}')
    rows = "<!-- receipts: /seconds -->\n| of | time |\n|---|---|\n"
    rows += "".join(f"| [{part}](receipts/one.json#/parts/{part}) | 3 s |\n" for part in "ab")
    assert list(wrong_cells(rows, tmp_path)) == ["[b](receipts/one.json#/parts/b): 3 s is 5 at /seconds"]
