"""What each file of an artifact should hold, and whether bytes are just that.

    a weight file    header │ tensor │ tensor │ …     each a section with a SHA-256 of its own
    a small file     ────── one section ──────

So damage is found at the end of the section that it is in, and what was right before it need not be read again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_pipeline.artifact_files.safetensors_header import StoredTensor, header_bytes
from broker_pipeline.artifact_manifest import WeightsManifest

PIECE_BYTES = 8 << 20

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Section:
    """Bytes that lie together in a file. `what` is a tensor's name, "its header", or empty for the whole file."""

    what: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileContent:
    """All that a file should hold, in its order."""

    name: str
    sections: tuple[Section, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole file."""
        return sum(section.size_bytes for section in self.sections)

    @classmethod
    def whole(cls, name: str, size_bytes: int, sha256: str) -> FileContent:
        """Return what a file that was hashed as it is should hold."""
        return cls(name, (Section("", size_bytes, sha256),))

    @classmethod
    def of_tensors(cls, name: str, tensors: Sequence[StoredTensor], hashes: Sequence[str]) -> FileContent:
        """Return what a weight file of these tensors should hold; `hashes` are theirs."""
        header = header_bytes(tensors)
        begin = Section("its header", len(header), hashlib.sha256(header).hexdigest())
        values = (Section(each.name, each.size_bytes, sha256) for each, sha256 in zip(tensors, hashes, strict=True))
        return cls(name, (begin, *values))


def contents_of(manifest: WeightsManifest) -> Mapping[str, FileContent]:
    """Return what weight files and side files should hold, by name; of random weights there are no files."""
    contents = {file.name: FileContent.whole(file.name, file.size_bytes, file.sha256) for file in manifest.side_files}
    for file in manifest.weight_files if manifest.random_weights is None else ():
        records = manifest.stored_in(file.name)
        tensors = [StoredTensor(record.name, record.dtype, record.shape) for record in records]
        contents[file.name] = FileContent.of_tensors(file.name, tensors, [record.sha256 for record in records])
    return contents


class ContentCheck:
    """Compares the bytes of a file, told in their order, with what it should hold."""

    def __init__(self, content: FileContent, num_good_bytes: int = 0) -> None:
        """Begin behind `num_good_bytes`, which earlier sections have that were found right."""
        self.altered: list[Section] = []
        """Sections that came to their end and were not what they should be."""
        self.num_good_bytes = num_good_bytes
        """Of the beginning of the file, in whole sections that are right."""
        ends = itertools.accumulate(section.size_bytes for section in content.sections)
        self._ahead = (each for each, end in zip(content.sections, ends, strict=True) if end > num_good_bytes)
        self._next_section()

    def update(self, piece: memoryview | bytes) -> None:
        """Take the next bytes; what is beyond the file's end is no part of any section."""
        rest = memoryview(piece)
        while self._section is not None and rest:
            taken = rest[: self._left_bytes]
            self._digest.update(taken)
            self._left_bytes -= len(taken)
            rest = rest[len(taken) :]
            if not self._left_bytes:
                self._end_section(self._section)

    @property
    def unfinished(self) -> Section | None:
        """The section whose end has not come."""
        return self._section

    def _end_section(self, section: Section) -> None:
        if self._digest.hexdigest() != section.sha256:
            self.altered.append(section)
        elif not self.altered:
            self.num_good_bytes += section.size_bytes
        self._next_section()

    def _next_section(self) -> None:
        self._section: Section | None = next(self._ahead, None)
        self._left_bytes = self._section.size_bytes if self._section else 0
        self._digest = hashlib.sha256()
        if self._section is not None and not self._left_bytes:
            self._end_section(self._section)


def find_damage(path: Path, content: FileContent, advance: Advance) -> list[str]:
    """Return what is wrong with a file; an empty list when every byte is right."""
    if problem := size_problem(path, content.size_bytes):
        return [problem]
    check = ContentCheck(content)
    for piece in read_pieces(path):
        check.update(piece)
        advance(len(piece))
    altered = [*check.altered, *([check.unfinished] if check.unfinished else [])]
    return [f"{path.name}: {f'{section.what} ' if section.what else ''}was altered" for section in altered]


def size_problem(path: Path, size_bytes: int) -> str | None:
    """Say that a file is missing, or has another size than it should."""
    try:
        found_bytes = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name}: missing"
    return None if found_bytes == size_bytes else f"{path.name}: has {found_bytes} bytes instead of {size_bytes}"


def hash_file(path: Path, advance: Advance) -> str:
    """Return the SHA-256 of a whole file, in hex."""
    digest = hashlib.sha256()
    for piece in read_pieces(path):
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def read_pieces(path: Path) -> Iterator[memoryview]:
    """Yield a file's bytes; each piece is good until the next one is asked for."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]
