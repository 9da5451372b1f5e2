from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from export.source.name_groups import group_names


def unfold(line: str) -> set[str]:
    """The names that a line stands for."""
    line = re.sub(r" \(\d+ tensors\)$", "", line)
    match = re.search(r"\{([\d,-]+)\}", line)
    if match is None:
        return {line}
    names = set()
    for run in match[1].split(","):
        low, _, high = run.partition("-")
        for number in range(int(low), int(high or low) + 1):
            names |= unfold(line[: match.start()] + str(number) + line[match.end() :])
    return names


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from("ab"))))
def test_nothing_is_left_out_and_nothing_invented(members):
    names = {f"layers.{layer}.experts.{expert}.{part}.weight" for layer, expert, part in members}
    lines = group_names(names)
    assert set().union(*(unfold(line) for line in lines)) == names


def test_a_whole_grid_is_one_line():
    names = [f"layers.{layer}.experts.{expert}.w" for layer in (0, 1, 2, 7) for expert in range(128)]
    assert group_names(names) == ["layers.{0-2,7}.experts.{0-127}.w (512 tensors)"]
