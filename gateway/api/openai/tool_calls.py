"""Finds calls of tools in a text that comes in pieces. Pure.

    pieces    "Let me see.\\n"  "<tool_"  "call>\\n{\\"name\\": \\"clock\\", …"  "}\\n</tool_call>"
    shown     "Let me see."     ""        ""                                a call

What is not a call after all, since its JSON is broken or lacks a name, is text like any other, tags included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

BEGIN, END = "<tool_call>", "</tool_call>"
_SPACES = " \t\r\n"


class _Call(msgspec.Struct, frozen=True):
    name: str
    arguments: dict[str, Any] | str = msgspec.field(default_factory=dict)
    """An object; some models write it as a string."""


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A call that the model made; `arguments` are a JSON object."""

    name: str
    arguments: str


class ToolCallReader:
    """Reads one output."""

    def __init__(self) -> None:
        self._held = ""
        self._is_call = False
        self._is_after_call = False
        """Whether spaces that come are those behind a call, which belong to nobody."""
        self.num_calls = 0

    def feed(self, text: str) -> list[str | FoundCall]:
        """Return what can be told now: texts to be shown, and calls."""
        self._held += text
        self._pass_spaces()
        told: list[str | FoundCall] = []
        while (found := self._held.find(END if self._is_call else BEGIN)) >= 0:
            if self._is_call:
                told.append(self._call(self._held[:found], END))
                self._held = self._held[found + len(END) :]
                self._is_after_call = isinstance(told[-1], FoundCall)
            else:
                told.append(self._held[:found].rstrip(_SPACES))
                self._held = self._held[found + len(BEGIN) :]
            self._is_call = not self._is_call
            self._pass_spaces()
        if not self._is_call:
            told.append(self._undoubted())
        return [each for each in told if each]

    def finish(self) -> list[str | FoundCall]:
        """Return what was held back: no more text comes. A call may lack its closing tag."""
        held, self._held = self._held, ""
        if self._is_call:
            return [self._call(held, "")]
        return [held] if held else []

    def _pass_spaces(self) -> None:
        if self._is_after_call and not self._is_call:
            self._held = self._held.lstrip(_SPACES)
            self._is_after_call = not self._held

    def _call(self, text: str, end: str) -> str | FoundCall:
        try:
            call = msgspec.json.decode(text.strip(), type=_Call)
            arguments = call.arguments
            if isinstance(arguments, str):
                arguments = msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            return f"{BEGIN}{text}{end}"
        self.num_calls += 1
        return FoundCall(call.name, msgspec.json.encode(arguments).decode())

    def _undoubted(self) -> str:
        """Take what no tag can begin in; spaces before a call belong to nobody, so they wait as well."""
        held = self._held
        cut = len(held) - next(n for n in range(len(BEGIN) - 1, -1, -1) if held.endswith(BEGIN[:n]))
        cut = len(held[:cut].rstrip(_SPACES))
        shown, self._held = held[:cut], held[cut:]
        return shown
