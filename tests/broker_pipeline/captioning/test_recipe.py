"""A recipe that was written is read as what it was."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.tools.caption.recipe import write_recipe

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.one_of(
    TEXTS,
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(TEXTS, min_size=1).map(tuple),
    st.dictionaries(TEXTS, st.integers(-100, 100), min_size=1),
)


@settings(deadline=None)
@given(options=st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), VALUES))
def test_what_is_written_is_read(options: dict[str, Any], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("recipe") / "run.toml"
    write_recipe(path, options)
    read = tomllib.loads(path.read_text(encoding="utf-8"))
    told = {name: value for name, value in options.items() if name not in {"recipe", "key", "secrets", "help"}}
    assert read == {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def test_secrets_stay_out_and_what_is_no_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    write_recipe(path, {"key": "bp-secret", "paths": ("caf\udce9",), "out": Path("a b.jsonl"), "prompt": ()})
    text = path.read_text()
    assert "bp-secret" not in text
    assert "# paths: has names that are no UTF-8" in text
    assert tomllib.loads(text) == {"out": "a b.jsonl"}
