"""One picture or video of a source, and the sources themselves as others see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from broker_pipeline.errors import MediaError


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to caption. Holds no bytes: `read` brings them, once or again, in whatever thread."""

    id: str
    """The same in every run: a path as it was typed, `a.tar::key`, `a.parquet#17`, a URL."""
    read: Callable[[], bytes]
    """Blocks. Raises `MediaError` where the bytes cannot be had: the item fails, and the others go on."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """What templates may name and sinks may keep: columns of a table, members of a tar, nothing for a plain file."""
    path: Path | None = None
    """The picture's own file, where it is one on this machine: sidecars stand beside it."""
    is_video: bool = False
    url: str | None = None
    """Where else it can be read: a URL, behind `#` a part of what is there; None for `path`, or nowhere."""

    def reference(self, sha256: str) -> str | None:
        """Return the URL under which workers can read it where they have the same folders; None where there is none."""
        url = self.url or (None if self.path is None else self.path.resolve().as_uri())
        return url and f"{url}{'&' if '#' in url else '#'}sha256={sha256}"

    @property
    def name(self) -> str:
        """What it is called, without folders and endings: `cat` of `pictures/cat.jpg`, the key of a tar's member."""
        last = self.id.rpartition("::")[2].rstrip("/").rpartition("/")[2]
        return last.rpartition(".")[0] or last


class Source(Protocol):
    """An ordered stream of items: each iteration gives the same ones, as far as what it reads stays as it is."""

    @property
    def name(self) -> str:
        """What a person calls it: the path or URL as it was typed."""

    def count(self) -> int | None:
        """Return how many items there are; None where nobody knows without reading all. May block."""

    def __iter__(self) -> Iterator[Item]:
        """Yield the items. May block. What cannot be read of it is a `broken` item, so that the rest goes on.

        Raises `ConfigurationError` or `InvalidRequestError` where nothing of it can be read at all.
        """


def broken(id: str, error: MediaError, fields: Mapping[str, object] | None = None) -> Item:  # noqa: A002 - its field
    """Return an item whose bytes cannot be had, for the reason that `error` tells."""

    def read() -> bytes:
        raise error

    return Item(id, read, fields or {})
