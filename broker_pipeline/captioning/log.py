"""The captions of a run: one JSON line per picture, appended as it is known, read again to resume.

A picture that is tried again gets another line; the last one counts. What a crash leaves of a last line is cut off, or
completed where it is whole; blocks of NULs, which file systems leave after a power cut, are read over, with what they
tore.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from broker_pipeline.captioning.line import BOM, CaptionLine, decode_line, encode_line
from broker_pipeline.captioning.output import STANDARD_OUTPUT, OutputFile, OutputStream
from broker_pipeline.client.caption_request import CaptionRequest, Picture
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.terminal import printable

Identity = tuple[str, str, str, str]
"""Where a picture really is, its content, what was asked about it, and of which model."""


class CaptionLog:
    """An open file of captions, or standard output for `-`. Use as a context manager; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Prepare to open the file at `path`."""
        self.name = "standard output" if path == STANDARD_OUTPUT else printable(path)
        self.num_torn_bytes = 0
        """Bytes of torn lines that were cut off or read over."""
        self.num_without_model = 0
        """Captions that name no model."""
        self._path = path
        self._output: OutputFile | OutputStream | None = None
        self._closing = ExitStack()
        self._captioned: set[Identity] = set()
        self._failures: Counter[Identity] = Counter()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._path == STANDARD_OUTPUT:
                self._output = stack.enter_context(OutputStream())
            else:
                self._output = stack.enter_context(OutputFile(self._path))
                self._load(self._output)
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    @property
    def num_captioned(self) -> int:
        """Pictures that have a caption in this file, for whatever request."""
        return len(self._captioned)

    def is_captioned(self, picture: Picture, request: CaptionRequest) -> bool:
        """Whether this picture, with this content, has a caption for this request, of this model or an unnamed one."""
        found = _identity(str(picture.path), picture.sha256, request.fingerprint, request.model)
        return found in self._captioned or (*found[:3], "") in self._captioned

    def num_failures(self, picture: Picture, request: CaptionRequest) -> int:
        """Return how often this has failed before."""
        return self._failures[_identity(str(picture.path), picture.sha256, request.fingerprint, request.model)]

    def append(self, line: CaptionLine) -> None:
        """Add a line; when this returns, it is the system's to keep. Raises `OutputError`."""
        assert self._output is not None, "not open"
        self._output.append(encode_line(line))
        self._note(line)

    def _load(self, file: OutputFile) -> None:
        content_end = 0
        for number, text in enumerate(file.lines(), start=1):
            if not text.endswith(b"\n"):
                self._mend(file, text, content_end)
                return
            content_end += len(text)
            self._read(text, number)

    def _read(self, text: bytes, number: int) -> None:
        if b"\0" in text:
            self._read_torn(text)
        elif text.strip():
            try:
                self._note(decode_line(text))
            except ValueError as error:
                raise self._foreign(f"line {number} of {self.name}", str(error)) from error

    def _read_torn(self, text: bytes) -> None:
        for piece in filter(None, (piece.strip() for piece in text.split(b"\0"))):
            try:
                self._note(decode_line(piece))
            except ValueError:
                self.num_torn_bytes += len(piece)

    def _mend(self, file: OutputFile, text: bytes, content_end: int) -> None:
        """Mend a last line without its end: complete it where it is whole, cut it off where it is torn."""
        try:
            line = decode_line(text)
        except ValueError as error:
            rest = text.strip(b"\0").removeprefix(BOM)
            if not rest.startswith(b"{"[: len(rest)]):
                raise self._foreign(self.name, "its last line is no JSON object") from error
            self.num_torn_bytes += len(text)
            file.truncate(content_end)
        else:
            file.append(b"\n")
            self._note(line)

    def _foreign(self, where: str, reason: str) -> ConfigurationError:
        text = f"{where} was not written by this command ({reason}); choose another --out"
        return ConfigurationError(text, field="out")

    def _note(self, line: CaptionLine) -> None:
        identity = _identity(line.path, line.sha256, line.request, line.fingerprint or "")
        if line.is_success:
            self._captioned.add(identity)
            self.num_without_model += line.fingerprint is None
        else:
            self._failures[identity] += 1


def _identity(path: str, sha256: str, request: str, model: str) -> Identity:
    return _real(path), sha256, request, model


def _real(path: str) -> str:
    folder, name = os.path.split(path)
    real = _real_folder(folder) / name
    try:
        return os.path.realpath(real) if real.is_symlink() else str(real)
    except OSError:  # a path that is too long for the system
        return path


@functools.lru_cache(maxsize=1024)
def _real_folder(folder: str) -> Path:
    return Path(os.path.realpath(folder))
