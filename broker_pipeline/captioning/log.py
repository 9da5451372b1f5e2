"""The captions of a run: one JSON line per picture, appended as it is known, read again to resume.

A picture that is tried again gets another line; the last one counts. What a crash leaves of a last line is cut off, or
completed where it is whole; blocks of NULs, which file systems leave after a power cut, are read over, with what they
tore.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from broker_pipeline.captioning.line import BOM, CaptionLine, decode_line, encode_line
from broker_pipeline.captioning.log_index import Kind, LogIndex
from broker_pipeline.captioning.output import STANDARD_OUTPUT, OutputFile, OutputStream
from broker_pipeline.client.caption_request import CaptionRequest, Picture, real_place
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.terminal import printable


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
        self._index = LogIndex()
        self.num_captioned = 0
        """Questions that have their answer in this file, of whatever model."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._path == STANDARD_OUTPUT:
                self._output = stack.enter_context(OutputStream())
            else:
                self._output = stack.enter_context(OutputFile(self._path))
                self._load(self._output)
            stack.callback(self._index.close)
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def find(self, picture: Picture, request: CaptionRequest) -> CaptionLine | None:
        """Return how this question about this picture with this content ended, of this model or an unnamed one."""
        return self._found("exact", (picture.place, picture.sha256, request.fingerprint), request.model)

    def find_by_name(self, name: str, request: CaptionRequest) -> CaptionLine | None:
        """Return how this question about what is called so ended, whatever its content was."""
        return self._found("name", (real_place(name), request.fingerprint), request.model)

    def find_content(self, sha256: str, request: CaptionRequest) -> CaptionLine | None:
        """Return how this question about the same content under whatever name ended."""
        return self._found("content", (sha256, request.fingerprint), request.model)

    def num_failures(self, picture: Picture, request: CaptionRequest) -> int:
        """Return how often this has failed before."""
        return self._index.get("failures", (picture.place, picture.sha256, request.fingerprint, request.model)) or 0

    def append(self, line: CaptionLine) -> None:
        """Add a line; when this returns, it is the system's to keep. Raises `OutputError`."""
        assert self._output is not None, "not open"
        self._note(line, self._output.append(encode_line(line)))

    def _found(self, kind: Kind, parts: tuple[str, ...], model: str) -> CaptionLine | None:
        for of_model in (model, ""):
            offset = self._index.get(kind, (*parts, of_model))
            if offset is not None and isinstance(self._output, OutputFile):
                return decode_line(self._output.line_at(offset))
        return None

    def _load(self, file: OutputFile) -> None:
        content_end = 0
        for number, text in enumerate(file.lines(), start=1):
            if not text.endswith(b"\n"):
                self._mend(file, text, content_end)
                return
            self._read(text, number, content_end)
            content_end += len(text)

    def _read(self, text: bytes, number: int, offset: int) -> None:
        if b"\0" in text:
            self._read_torn(text, offset)
        elif text.strip():
            try:
                self._note(decode_line(text), offset)
            except ValueError as error:
                raise self._foreign(f"line {number} of {self.name}", str(error)) from error

    def _read_torn(self, text: bytes, offset: int) -> None:
        for piece in filter(None, (piece.strip() for piece in text.split(b"\0"))):
            try:
                self._note(decode_line(piece), offset + text.index(piece))
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
            self._note(line, content_end)

    def _foreign(self, where: str, reason: str) -> ConfigurationError:
        text = f"{where} was not written by this command ({reason}); choose another --out"
        return ConfigurationError(text, field="out")

    def _note(self, line: CaptionLine, offset: int) -> None:
        place, asked = real_place(line.path), (line.request, line.fingerprint or "")
        if not line.is_final:
            self._index.count_failure((place, line.sha256, *asked))
            return
        self.num_without_model += line.fingerprint is None
        self.num_captioned += self._index.put("exact", (place, line.sha256, *asked), offset)
        self._index.put("name", (place, *asked), offset)
        self._index.put("content", (line.sha256, *asked), offset)
