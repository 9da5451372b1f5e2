"""Lines of output are ASCII, whatever was said, and decode to it; long batches write them in fewer parts."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.outbox import as_line, flush_period_s


@given(st.text())
def test_every_text_stands_on_one_line_of_ascii(text: str) -> None:
    line = as_line({"text": text}).decode("ascii")
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"text": text}


def test_parts_become_rarer_with_a_batch_s_age() -> None:
    assert [flush_period_s(age_s) for age_s in (0, 100, 1000, 6000, 1e6)] == [1, 1, 10, 60, 60]
    age_s, num_parts = 0.0, 0
    while age_s < 4 * 3600:
        age_s += flush_period_s(age_s)
        num_parts += 1
    assert num_parts < 700, "four hours, of which each second would be a part"
