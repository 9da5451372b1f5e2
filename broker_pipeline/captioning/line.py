"""One line of a file of captions, and its form as bytes.

A line is UTF-8, and what ends a line for any reader is escaped. A path that is no UTF-8 is shown with `\\xNN` for the
bytes that are not, and stands there a second time as base64, which leads back to the file. Lines of earlier versions
are read as well: they have such bytes as lone surrogates, and name no model.
"""

from __future__ import annotations

import base64
import json
import os
import re

import msgspec

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import Choice, Usage
from broker_pipeline.process.terminal import printable

_LINE_ENDS = [(end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029"]
"""What JSON leaves as it is and some readers take for the end of a line."""
BOM = b"\xef\xbb\xbf"
_OWN = re.compile(r"[/\d]|\w\.\w")
"""In words of a message that are an item's own: numbers and paths."""


class Timings(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where a job's seconds went, by the clock of the servers; absent where it did not get so far."""

    created_at: float | None = None
    """Seconds since 1970, as the next one."""
    finished_at: float | None = None
    queued_s: float | None = None
    running_s: float | None = None


class CaptionLine(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of one picture. Fields that a later version adds are read over."""

    path: str
    """As it was typed, with bytes that are no UTF-8 as Python has them in file names."""
    path_base64: str | None = None
    sha256: str
    status: str
    """succeeded, failed, cancelled, refused (the gateway, or reading the file, made no job of it), guarded (a guard
    refused this try, and another followed), or dropped (a guard refused the last one)."""
    question: str | None = None
    """Name of what was asked, where several things were."""
    caption: str | None = None
    guard: str | None = None
    """What a guard found wrong: with a caption that was kept, and one that was not."""
    uncleaned: str | None = None
    """The caption as the model gave it, where it was cleaned."""
    same_as: str | None = None
    """The item with the same content that was asked about."""
    choices: tuple[Choice, ...] = ()
    """All captions, where several were asked for."""
    reasoning: str | None = None
    """What a Thinking model said before the caption."""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Failure | None = None
    model: str | None = None
    fingerprint: str | None = None
    """Of the model's artifact; None in lines of earlier versions."""
    prompt: str | None = None
    system: str | None = None
    prompt_sha256: str | None = None
    parameters: dict[str, object] | None = None
    """Every sampling parameter as it was obeyed, the seed included; as it was asked for where no job was run. What was
    said of pixels and frames is there too."""
    seed: int | None = None
    request: str
    """Fingerprint of prompt and sampling parameters, as they were asked for."""
    job_id: str | None = None
    num_attempts: int | None = None

    @property
    def is_success(self) -> bool:
        """Whether there is a caption."""
        return self.status == "succeeded"

    @property
    def is_final(self) -> bool:
        """Whether nobody needs to ask again."""
        return self.status in {"succeeded", "dropped"}


def encode_line(line: CaptionLine) -> bytes:
    """Return a line as bytes, its end included."""
    name = os.fsencode(line.path)
    if not _is_utf8(name):
        shown = name.decode("utf-8", "backslashreplace")
        line = msgspec.structs.replace(line, path=shown, path_base64=base64.b64encode(name).decode())
    else:  # the system's encoding of names may be another one
        line = msgspec.structs.replace(line, path=name.decode())
    if line.same_as is not None:
        same_as = os.fsencode(line.same_as).decode("utf-8", "backslashreplace")
        line = msgspec.structs.replace(line, same_as=same_as)
    fields = msgspec.to_builtins(line, str_keys=True)
    text = f"{json.dumps(fields, ensure_ascii=False)}\n".encode()  # with spaces, which people search with
    for end, escaped in _LINE_ENDS:
        text = text.replace(end, escaped)
    return text


def decode_line(text: bytes) -> CaptionLine:
    """Return a line; raises `ValueError` where it is none."""
    text = text.removeprefix(BOM)
    try:
        line = msgspec.json.decode(text, type=CaptionLine)
    except (msgspec.DecodeError, UnicodeDecodeError):
        line = msgspec.convert(json.loads(text), CaptionLine)  # takes lone surrogates
    if line.path_base64 is None:
        return line
    path = os.fsdecode(base64.b64decode(line.path_base64, validate=True))
    return msgspec.structs.replace(line, path=path, path_base64=None)


def describe_line(line: CaptionLine) -> str:
    """Return a line as a person reads it: the path, and what was said about the picture or why nothing was."""
    reason = line.error.message if line.error else line.status
    return f"{printable(line.path)}: {printable(line.caption if line.is_success else reason)}"


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def failure_kind(line: CaptionLine) -> tuple[str, str]:
    """Return the code of a failure, and its message without what is an item's own: numbers and paths."""
    if not line.error:
        return line.status, ""
    return line.error.code, " ".join("…" if _OWN.search(word) else word for word in line.error.message.split())
