"""Calls of tools in a text, however it comes in pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.openai.tool_calls import FoundCall, ToolCallReader

CLOCK = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
FOUND = FoundCall("clock", '{"zone":"UTC"}')


def told(pieces: list[str]) -> list[str | FoundCall]:
    """Return what a reader tells, texts that follow each other joined."""
    reader, joined = ToolCallReader(), list[str | FoundCall]()
    for each in [item for piece in pieces for item in reader.feed(piece)] + reader.finish():
        if isinstance(each, str) and joined and isinstance(joined[-1], str):
            joined[-1] += each
        else:
            joined.append(each)
    assert reader.num_calls == sum(isinstance(each, FoundCall) for each in joined)
    return joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("No call.\n", ["No call.\n"]),
        ("a < b <tool", ["a < b <tool"]),
        (CLOCK, [FOUND]),
        (f"Let me see.\n{CLOCK}\n{CLOCK}", ["Let me see.", FOUND, FOUND]),
        (CLOCK.removesuffix("\n</tool_call>"), [FOUND]),
        ('<tool_call>{"name": "f"}</tool_call>', [FoundCall("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [FoundCall("f", '{"a":1}')]),
        ('<tool_call>{"name": "é", "arguments": {"a": "é"}}</tool_call>', [FoundCall("é", '{"a":"é"}')]),
        ("<tool_call>{broken</tool_call> more", ["<tool_call>{broken</tool_call> more"]),
        ('<tool_call>{"arguments": {}}</tool_call>', ['<tool_call>{"arguments": {}}</tool_call>']),
        ('<tool_call>{"name": "f", "arguments": "[]"}', ['<tool_call>{"name": "f", "arguments": "[]"}']),
        ("x <tool_call>{", ["x<tool_call>{"]),
        ("<tool_call>" + "[" * 5000, ["<tool_call>" + "[" * 5000]),
    ],
)
def test_whole_texts(text: str, expected: list[str | FoundCall]) -> None:
    assert told([text]) == expected
    assert told(list(text)) == expected


@given(
    st.lists(st.sampled_from([CLOCK, "text ", "\n", "<", "<tool_call>", "</tool_call>", "{", "é\n"]), max_size=8),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_every_cut_tells_the_same(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[start:stop] for start, stop in pairwise(places)]
    assert told(pieces) == told([text])
    for each in told(pieces):
        assert isinstance(each, str) or json.loads(each.arguments) == {"zone": "UTC"}
