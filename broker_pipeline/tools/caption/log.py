"""The file of captions: one JSON line per picture, appended as it is known, read again to resume.

A line is written whole by one system call or, if the machine dies in it, as a torn last line, which the next run cuts
off. A picture that is tried again gets another line; the last one counts. Text is UTF-8, and what ends a line for any
reader is escaped. Bytes of a path that are no UTF-8 stand there as `\\xNN`.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import orjson

from broker_pipeline.client.caption_request import CaptionRequest, Picture
from broker_pipeline.errors import ConfigurationError, Failure
from broker_pipeline.messages.jobs import Choice, Usage

_LINE_ENDS = [(end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029"]
"""What JSON leaves as it is and some readers take for the end of a line."""


class Timings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a job's seconds went, by the clock of the servers; absent where it did not get so far."""

    queued_s: float | None = None
    running_s: float | None = None


class CaptionLine(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of one picture. Fields that a later version adds are read over."""

    path: str
    sha256: str
    status: str
    """succeeded, failed, cancelled, or refused (the gateway, or reading the file, made no job of it)."""
    caption: str | None = None
    choices: tuple[Choice, ...] = ()
    """All captions, where several were asked for."""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Failure | None = None
    prompt: str | None = None
    request: str
    """Fingerprint of prompt and sampling parameters."""
    job_id: str | None = None
    num_attempts: int | None = None

    @property
    def is_success(self) -> bool:
        """Whether there is a caption."""
        return self.status == "succeeded"


class CaptionLog:
    """An open file of captions. Use as a context manager; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Prepare to open the file at `path`."""
        self.path = path
        self._fd = -1
        self._captioned: set[tuple[str, str, str]] = set()
        self._failures: Counter[tuple[str, str, str]] = Counter()
        self.num_torn_bytes = 0
        """Bytes of a torn last line that were cut off."""

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigurationError(f"cannot write {self.path}: {error.strerror}", field="out") from error
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._fd)
        os.close(self._fd)

    @property
    def num_captioned(self) -> int:
        """Pictures that have a caption in this file, for whatever request."""
        return len(self._captioned)

    def is_captioned(self, picture: Picture, request: CaptionRequest) -> bool:
        """Whether this picture, with this content, has a caption for this request."""
        return _identity(picture, request) in self._captioned

    def num_failures(self, picture: Picture, request: CaptionRequest) -> int:
        """Return how often this has failed before."""
        return self._failures[_identity(picture, request)]

    def append(self, line: CaptionLine) -> None:
        """Add a line; when this returns, it is the system's to keep."""
        line = msgspec.structs.replace(line, path=_as_text(line.path))
        text = orjson.dumps(msgspec.to_builtins(line), option=orjson.OPT_APPEND_NEWLINE)
        for end, escaped in _LINE_ENDS:
            text = text.replace(end, escaped)
        while text:
            text = text[os.write(self._fd, text) :]
        self._note(line)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"another run is writing {self.path}; wait for it, or choose another --out", field="out"
            ) from error

    def _load(self) -> None:
        with os.fdopen(os.dup(self._fd), "rb") as file:
            content_end = 0
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    self._mend(text, content_end)
                    return
                content_end += len(text)
                if text.strip():
                    self._note(self._parse(text, number))

    def _mend(self, text: bytes, content_end: int) -> None:
        """Mend a last line without its end: complete it where it is whole, cut it off where it is torn."""
        try:
            line = msgspec.json.decode(text, type=CaptionLine)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            if not text.startswith(b"{"[: len(text)]):
                raise self._foreign(0, "its last line is no JSON object") from None
            self.num_torn_bytes = len(text)
            os.ftruncate(self._fd, content_end)
        else:
            self._note(line)
            os.write(self._fd, b"\n")

    def _parse(self, text: bytes, number: int) -> CaptionLine:
        try:
            return msgspec.json.decode(text, type=CaptionLine)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._foreign(number, str(error)) from error

    def _foreign(self, number: int, reason: str) -> ConfigurationError:
        where = f"line {number} of {self.path}" if number else str(self.path)
        text = f"{where} was not written by this command ({reason}); choose another --out"
        return ConfigurationError(text, field="out")

    def _note(self, line: CaptionLine) -> None:
        identity = (line.path, line.sha256, line.request)
        if line.is_success:
            self._captioned.add(identity)
        else:
            self._failures[identity] += 1


def _identity(picture: Picture, request: CaptionRequest) -> tuple[str, str, str]:
    path, sha256, fingerprint = picture.identity(request)
    return _as_text(path), sha256, fingerprint


def _as_text(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
