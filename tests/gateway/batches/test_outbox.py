"""Lines of output are ASCII, whatever was said, and decode to it."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.outbox import as_line


@given(st.text())
def test_every_text_stands_on_one_line_of_ascii(text: str) -> None:
    line = as_line({"text": text}).decode("ascii")
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"text": text}
