"""What sinks write beside the captions, and how."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class SinkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Holds for all sinks of a run."""

    text_column: str | None = None
    """Name of the column of the first or only question, whose own name it has otherwise."""
    shard_rows: Annotated[int, Meta(ge=1)] = 1000
    """Rows of a shard; the last one may have fewer."""
    trigger: str = ""
    """Stands in front of each caption, as `trigger, caption`."""
    keep_fields: bool = True
    """Whether an item's fields are written."""
    keep_failed: bool = False
    """Whether rows without all their captions are written as well, with the reason in the column `error`."""
    provenance: bool = True
    """Whether it is written which model said it, when asked what."""
