"""A tar as a source, as WebDataset has them: members of one key are one item. Nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

from broker_pipeline.captioning.sources.item import Item, broken
from broker_pipeline.captioning.sources.location import scheme_of
from broker_pipeline.captioning.sources.opening import media_error, open_stream
from broker_pipeline.captioning.sources.reading import check_size
from broker_pipeline.captioning.sources.seen_keys import SeenKeys
from broker_pipeline.captioning.sources.settings import VIDEO_ENDINGS, SourceSettings
from broker_pipeline.captioning.sources.strict_json import strict_json
from broker_pipeline.errors import MediaError, UnreadableFileError
from broker_pipeline.process.terminal import printable

_MAX_MEMBERS = 64
"""Of one key: what has more is no sample, but many files with one beginning."""
_TEXTS = {".txt", ".cls"}
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class _Header(tarfile.TarInfo):
    """A member's header. Where there is none, nor the end of the archive, the tar is broken: tarfile is silent."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _ENDS:
            raise
        except _HEADER_ERRORS as error:
            raise _CutOffError(f"it breaks off, or is no tar: {error}") from error


class _CutOffError(Exception):
    """The tar ends before its end."""


_ENDS: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_HEADER_ERRORS = tarfile.HeaderError


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a tar: `read` brings its bytes at once or later, as the tar allows."""

    name: str
    offset: int
    key: str
    ending: str
    """All of the name's last part from its first dot on."""
    read: Callable[[], bytes]
    url: str | None = None
    """The same, for others who have the tar."""

    @property
    def last_ending(self) -> str:
        return self.ending[self.ending.rfind(".") :]


class TarSource:
    """A tar. Items are `TAR::KEY`, or `TAR::NAME` for each where a key has several pictures.

    A key that comes again is `TAR::KEY@OFFSET`, so that no two have one name.
    """

    def __init__(self, name: str, settings: SourceSettings) -> None:
        """Prepare to read a tar, compressed or not."""
        self.name = name
        self.left_out: Counter[str] = Counter()
        """Members of keys without a picture, counted by their endings, in the last iteration so far."""
        self.first_repeated = ""
        self.num_repeated = 0
        """Keys that came again after others, in the last iteration so far, and the first item with one."""
        self._endings = settings.endings

    def count(self) -> None:
        """Return None: nobody knows without reading all of it."""

    def __iter__(self) -> Iterator[Item]:
        """Yield the items. Where the tar breaks off, the last one says so under the tar's own name."""
        self.left_out.clear()
        self.num_repeated = 0
        seen = SeenKeys()
        try:
            for group in _grouped(self._members()):
                yield from self._items(group, "" if seen.add(group[0].key) else self._again(group[0]))
        except Exception as error:  # noqa: BLE001 - tarfile's, the decompressors' and the file systems'
            yield broken(self.name, media_error(self.name, error))

    def _again(self, member: _Member) -> str:
        suffix = f"@{member.offset}"
        if not self.num_repeated:
            self.first_repeated = f"{self.name}::{member.key}{suffix}"
        self.num_repeated += 1
        return suffix

    def _members(self) -> Iterator[_Member]:
        is_local = not scheme_of(self.name)
        with open_stream(self.name) as stream:
            is_plain = is_local and not _starts_compressed(self.name)
            with tarfile.open(fileobj=stream, mode="r:" if is_plain else "r|*", tarinfo=_Header) as tar:
                while header := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined]  # or all of them are kept
                    if not header.isdir() and not header.name.rpartition("/")[2].startswith("."):
                        yield _member_of(tar, header, Path(self.name) if is_plain else None, self._endings)

    def _items(self, group: list[_Member], suffix: str) -> Iterator[Item]:
        pictures = [each for each in group if each.ending in self._endings]
        pictures = pictures or [each for each in group if each.last_ending in self._endings]
        if not pictures:
            self.left_out.update(each.last_ending for each in group)
        for each in pictures:
            id_ = f"{self.name}::{each.key if len(pictures) == 1 else each.name}{suffix}"
            try:
                fields = _fields_of(group)
            except MediaError as error:
                yield broken(id_, error)
            else:
                yield Item(id_, each.read, fields, is_video=each.last_ending in VIDEO_ENDINGS, url=each.url)


def _grouped(members: Iterator[_Member]) -> Iterator[list[_Member]]:
    """Yield members of one key that follow each other, no name twice; those before a break as well."""
    group: list[_Member] = []
    try:
        for member in members:
            is_full = len(group) == _MAX_MEMBERS or any(each.name == member.name for each in group)
            if group and (is_full or member.key != group[0].key):
                yield group
                group = []
            group.append(member)
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def _member_of(tar: tarfile.TarFile, header: tarfile.TarInfo, path: Path | None, endings: frozenset[str]) -> _Member:
    """Return a member; its bytes are held where they cannot be found later, which `path` says."""
    folder, slash, name = header.name.rpartition("/")
    stem, dot, rest = name.partition(".")
    ending = f"{dot}{rest}".lower()
    member = partial(_Member, header.name, header.offset, f"{folder}{slash}{stem}", ending)
    last = ending[ending.rfind(".") :]
    if last not in endings | _TEXTS | {".json"}:
        return member(_raising(UnreadableFileError("it is not read")))
    try:
        if not header.isreg() or header.issparse():
            raise UnreadableFileError(f"{printable(header.name)} is a link or a sparse file in the tar")
        check_size(header.size)
    except MediaError as error:
        return member(_raising(error))
    if path is not None:
        url = f"{path.resolve().as_uri()}#offset={header.offset_data}&length={header.size}"
        return member(partial(_read_at, path, header.name, header.offset_data, header.size), url)
    content = tar.extractfile(header)
    assert content is not None, "it is a regular file"
    return member(partial(bytes, content.read()))


def _fields_of(group: list[_Member]) -> dict[str, object]:
    """Return what the texts and JSON objects of a key say; raises `UnreadableFileError` naming the member."""
    fields: dict[str, object] = {}
    for each in group:
        try:
            if each.ending == ".json":
                value = strict_json(each.read())
                fields |= value if isinstance(value, dict) else {"json": value}
            elif each.ending in _TEXTS:
                fields[each.ending[1:]] = each.read().decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UnreadableFileError(f"{printable(each.name)} in the tar: {error}") from error
    return fields


def _read_at(path: Path, name: str, offset: int, num_bytes: int) -> bytes:
    """Return a member's bytes out of a tar that is not compressed."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(num_bytes)
    except OSError as error:
        raise media_error(str(path), error) from error
    if len(content) < num_bytes:
        raise UnreadableFileError(f"{printable(path)} ends within {printable(name)}")
    return content


def _raising(error: MediaError) -> Callable[[], Any]:
    def read() -> Any:
        raise error

    return read


def _starts_compressed(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(6).startswith(_COMPRESSED)
