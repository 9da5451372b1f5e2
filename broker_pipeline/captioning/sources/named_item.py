"""The item of a picture or video that has a location."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.captioning.sources.location import ending_of, local_path
from broker_pipeline.captioning.sources.opening import fetch, need_package
from broker_pipeline.captioning.sources.reading import read_file
from broker_pipeline.captioning.sources.settings import VIDEO_ENDINGS
from broker_pipeline.errors import MediaError
from broker_pipeline.process.terminal import printable


def item_at(id: str, location: str, fields: Mapping[str, object] | None = None) -> Item:  # noqa: A002 - its field
    """Return the item of a picture or video; raises `ConfigurationError` for a URL where there is no fsspec."""
    is_video = ending_of(location) in VIDEO_ENDINGS
    if (local := local_path(location)) is None:
        need_package("fsspec", "a picture behind a URL")
        return Item(id, partial(fetch, location), fields or {}, is_video=is_video, url=location.partition("#")[0])
    path = Path(local)
    read = partial(read_file, path) if id == location else partial(_read_named, path)
    return Item(id, read, fields or {}, path, is_video)


def _read_named(path: Path) -> bytes:
    """Return a file's bytes; errors name it, since the item's id does not."""
    try:
        return read_file(path)
    except MediaError as error:
        raise type(error)(f"{printable(path)}: {error.message}") from error
