"""Events of the Chrome trace format, as far as profiles use them: written by processes and by `trace merge`, read back.

M   name and order of a process or thread; ours also for clocks     X   a slice of a thread
b e begin and end of an asynchronous slice                          s f begin and end of an arrow
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Fact = int | float | str | bool


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """One event. `ts` and `dur` are numbers in microseconds, kept as text: a double has no room for nanoseconds."""

    ph: Literal["M", "X", "b", "e", "s", "f"]
    name: str
    pid: int
    tid: int = 0
    cat: str = ""
    ts: msgspec.Raw = msgspec.Raw()
    dur: msgspec.Raw = msgspec.Raw()
    id: str = ""
    bp: str = ""
    args: dict[str, Any] = {}


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Event).decode


def microseconds(nanoseconds: int) -> msgspec.Raw:
    """Return a time as the format wants it: microseconds, with all their decimals."""
    sign, size = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    return msgspec.Raw(b"%s%d.%03d" % (sign.encode(), *divmod(size, 1000)))


def nanoseconds(text: msgspec.Raw) -> int:
    """Return a time in nanoseconds; raises ValueError for what is no plain number."""
    whole, _, decimals = bytes(text).partition(b".")
    size = abs(int(whole)) * 1000 + int((decimals + b"000")[:3])
    return -size if whole.startswith(b"-") else size
