"""Names for what is written about an item, made of what it is called in its source."""

from __future__ import annotations

from pathlib import PurePosixPath

from broker_pipeline.captioning.sinks.texts import valid
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.captioning.sources.settings import VIDEO_ENDINGS
from broker_pipeline.pictures.formats import ENDINGS, format_of

_TAR_ENDINGS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_FORMAT_ENDINGS = {"JPEG": ".jpg", "JPEG 2000": ".jp2"}


def path_of(item: Item) -> str:
    """Return a relative path without ending: `a/b` of `../a/b.jpg`, `h/b` of `https://h/b.png`, `t/k` of `t.tar::k`.

    What is no ending of a picture or video stays. No part of it leads upwards.
    """
    name = valid(item.id).rpartition("://")[2]
    tar, found, key = name.rpartition("::")
    if found:
        ending = next((each for each in _TAR_ENDINGS if tar.lower().endswith(each)), "")
        name = f"{tar[: len(tar) - len(ending)]}/{key}"
    return _without_ending("/".join(part for part in name.split("/") if part not in {"", ".", ".."}))


def key_of(item: Item) -> str:
    """Return a key as WebDataset has them: a tar member's own, else `path_of`; the last part has no dots."""
    key = valid(item.id).rpartition("::")[2] if "::" in item.id else path_of(item)
    folder, slash, name = _without_ending(key).rpartition("/")
    return f"{folder}{slash}{name.replace('.', '_')}"


def media_ending(item: Item, content: bytes) -> str:
    """Return the ending that a picture's or video's file has, or would have by how it begins; in lower case."""
    for name in (item.path.name if item.path else "", item.id):
        ending = PurePosixPath(name).suffix.lower()
        if ending in ENDINGS | VIDEO_ENDINGS:
            return ending
    found = format_of(content)
    if found is None:
        return ".mp4" if item.is_video else ".bin"
    return _FORMAT_ENDINGS.get(found, f".{found.lower()}")


def _without_ending(name: str) -> str:
    ending = PurePosixPath(name).suffix
    return name.removesuffix(ending) if ending.lower() in ENDINGS | VIDEO_ENDINGS else name
