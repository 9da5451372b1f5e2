"""Opens whatever a person names as a source: told by what it is, and by its ending."""

from __future__ import annotations

import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from broker_pipeline.captioning.sources.braces import expanded
from broker_pipeline.captioning.sources.chain import Chain
from broker_pipeline.captioning.sources.files import FilesSource, Known, facts_of
from broker_pipeline.captioning.sources.item import Item, Source
from broker_pipeline.captioning.sources.location import ending_of, file_name, scheme_of
from broker_pipeline.captioning.sources.named_item import item_at
from broker_pipeline.captioning.sources.path_list import ListSource, list_file
from broker_pipeline.captioning.sources.remote_folder import is_pattern, pinned, urls_in
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.captioning.sources.tables.arrow_rows import arrow_rows, count_arrow, count_parquet, parquet_rows
from broker_pipeline.captioning.sources.tables.saved_dataset import files_of, is_saved_dataset
from broker_pipeline.captioning.sources.tables.table import TableSource
from broker_pipeline.captioning.sources.tables.text_rows import csv_rows, jsonl_rows
from broker_pipeline.captioning.sources.tar import TarSource
from broker_pipeline.config import flag_of
from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.process.terminal import printable

_TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_TABLES: dict[str, Callable[[str, SourceSettings], Source]] = {
    ".parquet": partial(TableSource, read=parquet_rows, count=count_parquet),
    ".arrow": partial(TableSource, read=arrow_rows, count=count_arrow),
    ".feather": partial(TableSource, read=arrow_rows, count=count_arrow),
    ".csv": partial(TableSource, read=csv_rows),
    ".tsv": partial(TableSource, read=partial(csv_rows, delimiter="\t")),
    ".jsonl": partial(TableSource, read=jsonl_rows),
}
_NAME_FILTERS = ("include", "exclude")
_OTHER_FILTERS = ("min_bytes", "max_bytes")
_AGES = ("newer_than_s", "older_than_s")
_DEFAULTS = SourceSettings()


class _UrlSource:
    """One picture or video behind a URL."""

    def __init__(self, name: str) -> None:
        self.name = name

    def count(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Item]:
        yield item_at(self.name, self.name)


class _RemoteFolder(Chain):
    """The pictures, tars and Parquet files below a URL, or what a pattern asks for; each is a source of its own."""

    def __init__(self, url: str, settings: SourceSettings) -> None:
        endings = settings.endings | {".parquet"}
        if is_pattern(url) and ending_of(url):
            endings |= {ending_of(url)}
        urls, self._left_out = urls_in(
            url, settings, lambda name: ending_of(name) in endings or file_name(name).endswith(_TARS)
        )
        super().__init__(url, [_open_file(each, settings) or _UrlSource(each) for each in urls])

    @property
    def left_out(self) -> Counter[str]:
        return super().left_out + self._left_out


def open_source(path: str, settings: SourceSettings = _DEFAULTS, *, clock: Callable[[], float] = time.time) -> Source:
    """Return what a path or URL leads to as a source; see `open_sources`."""
    return open_sources([path], settings, clock=clock)


def open_sources(
    paths: Sequence[str],
    settings: SourceSettings = _DEFAULTS,
    *,
    lists: Sequence[ListSource] = (),
    clock: Callable[[], float] = time.time,
) -> Chain:
    """Return all that the paths, URLs and `lists` lead to, one after the other. May block: remote folders are listed.

    Files are taken once. Raises `ConfigurationError` for what is not there or needs a package that is not, and
    `InvalidRequestError` where settings cannot be obeyed. `clock` tells seconds since 1970.
    """
    known = Known()
    parts = [part for path in paths for each in expanded(path) for part in _opened(each, settings, known, clock)]
    parts += lists
    _check(parts, settings)
    names = [part.name for part in parts]
    name = names[0] if len(names) == 1 else f"{len(names)} sources"
    return Chain(name, parts, known, shuffle=settings.shuffle)


def _opened(path: str, settings: SourceSettings, known: Known, clock: Callable[[], float]) -> Iterator[Source]:
    """Yield the source of a path; nothing where it was opened before."""
    if scheme_of(path):
        if known.is_new(path, None):
            yield _open_url(path, settings)
        return
    facts = facts_of(path)
    shards = _open_file(path, settings) if stat.S_ISREG(facts.st_mode) else None
    if stat.S_ISDIR(facts.st_mode) and is_saved_dataset(Path(path)):
        tables = [TableSource(each, settings, arrow_rows, count_arrow) for each in files_of(Path(path))]
        shards = Chain(path, tables)
    if not shards:
        yield FilesSource(path, settings, known, clock)
    elif known.is_new(path, facts):
        yield shards


def _open_file(location: str, settings: SourceSettings) -> Source | None:
    """Return the source of a file that holds several items, told by its ending; None for any other."""
    ending = ending_of(location)
    if file_name(location).endswith(_TARS):
        return TarSource(location, settings)
    if ending == ".txt":
        return list_file(location)
    return _TABLES[ending](location, settings) if ending in _TABLES else None


def _open_url(url: str, settings: SourceSettings) -> Source:
    url = pinned(url)
    if is_pattern(url) or url.endswith("/"):
        return _RemoteFolder(url, settings)
    shards = _open_file(url, settings)
    if shards:
        return shards
    is_file = ending_of(url) in settings.endings or scheme_of(url) != "hf"
    return _UrlSource(url) if is_file else _RemoteFolder(url, settings)


def _check(parts: Sequence[Source], settings: SourceSettings) -> None:
    """Refuse settings that would be obeyed in part."""
    stream = next((part for part in parts if not isinstance(part, FilesSource | ListSource | _UrlSource)), None)
    if settings.shuffle is not None and stream:
        reason = f"--shuffle: {printable(stream.name)} is read as a stream; folders and lists can be shuffled"
        raise InvalidRequestError(reason, field="shuffle")
    remote = any(isinstance(part, _RemoteFolder) for part in parts)
    local = any(isinstance(part, FilesSource) and part.is_folder for part in parts)
    for name in (*_NAME_FILTERS, *_OTHER_FILTERS, *_AGES):
        is_set = getattr(settings, name) != getattr(_DEFAULTS, name)
        if is_set and not (local and not remote if name in _AGES else local or remote):
            flag = flag_of(name)
            where = "folders of this machine" if name in _AGES else "folders"
            raise InvalidRequestError(f"{flag} chooses among the files of {where}", field=name)
