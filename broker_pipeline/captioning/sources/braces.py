"""Braces in paths and URLs, as shards are named: `shard-{000..099}.tar`, `{a,b}/`."""

from __future__ import annotations

import os
from itertools import islice

from broker_pipeline.captioning.sources.location import scheme_of
from broker_pipeline.captioning.sources.opening import need_package
from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.process.terminal import printable

MAX_PATHS = 100_000


def expanded(path: str) -> list[str]:
    """Return what braces stand for, in order; the path itself where it has none, or is there as it is.

    Raises `InvalidRequestError` for more than 100,000 paths, or braces that are not closed.
    """
    if "{" not in path or (not scheme_of(path) and os.path.lexists(path)):
        return [path]
    braces = need_package("braceexpand", printable(path))
    try:
        paths = list(islice(braces.braceexpand(path), MAX_PATHS + 1))
    except braces.UnbalancedBracesError as error:
        raise InvalidRequestError(f"{printable(path)}: a brace is not closed", field="PATHS") from error
    if len(paths) > MAX_PATHS:
        raise InvalidRequestError(f"{printable(path)} stands for more than {MAX_PATHS} paths", field="PATHS")
    return paths
