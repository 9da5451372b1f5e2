"""Several sources as one, one after the other or shuffled."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from broker_pipeline.captioning.sources.files import FilesSource, Known
from broker_pipeline.captioning.sources.item import Item, Source
from broker_pipeline.captioning.sources.location import local_path
from broker_pipeline.captioning.sources.path_list import ListSource
from broker_pipeline.captioning.sources.tar import TarSource
from broker_pipeline.errors import MediaError

_NUM_LOOKED_AT = 20


class Chain:
    """Sources one after the other. What they leave out is told for all of them, as far as they were read."""

    def __init__(
        self, name: str, parts: Sequence[Source], known: Known | None = None, *, shuffle: int | None = None
    ) -> None:
        """Join `parts`, which share what is `known`. `shuffle` is the seed of their items' order: all are held then."""
        self.name = name
        self.parts = tuple(parts)
        self._known = known or Known()
        self._shuffle = shuffle

    @property
    def num_repeated(self) -> int:
        """Further paths to files that were met already."""
        return self._known.num_repeated

    @property
    def left_out(self) -> Counter[str]:
        """Files and members that are not named like what is taken, counted by their endings."""
        found: Counter[str] = Counter()
        for part in self.parts:
            if isinstance(part, FilesSource | TarSource | Chain):
                found += part.left_out
        return found

    @property
    def num_filtered(self) -> int:
        """Files of folders that `--include` and its like leave out."""
        return sum(part.num_filtered for part in self.parts if isinstance(part, FilesSource | Chain))

    @property
    def unreadable(self) -> dict[str, str]:
        """Folders that could not be listed, with the reason."""
        found: dict[str, str] = {}
        for part in self.parts:
            if isinstance(part, FilesSource | Chain):
                found |= part.unreadable
        return found

    def count(self) -> int | None:
        """Return how many items there are; None where a part does not know."""
        counts = [part.count() for part in self.parts]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def repeated(self) -> dict[str, int]:
        """Of each tar with keys that come again, as far as it was read: the first such item, and how many there are."""
        found: dict[str, int] = {}
        for part in self.parts:
            if isinstance(part, Chain):
                found |= part.repeated
            elif isinstance(part, TarSource) and part.num_repeated:
                found[part.first_repeated] = part.num_repeated
        return found

    def samples(self) -> Iterator[Item]:
        """Yield an item of each part that can be read again, for what sinks need to know of them. May block."""
        for part in self.parts:
            if isinstance(part, Chain | FilesSource):
                yield from part.samples()
            elif isinstance(part, TarSource) or (local_path(part.name) is None and not isinstance(part, ListSource)):
                yield Item(part.name, bytes)  # nothing of it is a file of its own here
            elif not isinstance(part, ListSource) or not part.is_read_once:
                yield from islice(filter(_is_there, islice(iter(part), _NUM_LOOKED_AT)), 1)

    def __iter__(self) -> Iterator[Item]:
        """Yield all items."""
        if self._shuffle is None:
            for part in self.parts:
                yield from part
            return
        items = [item for part in self.parts for item in part]
        random.Random(self._shuffle).shuffle(items)
        yield from items


def _is_there(item: Item) -> bool:
    try:
        return bool(item.path or item.url or item.read())
    except MediaError:
        return False
