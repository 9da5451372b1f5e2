"""Braces and wildcards in paths and URLs: `shard-{000..099}.tar`, `{a,b}/`, `photos/*.jpg`."""

from __future__ import annotations

import glob
import os
from itertools import islice

from broker_pipeline.captioning.sources.location import scheme_of
from broker_pipeline.captioning.sources.opening import need_package
from broker_pipeline.captioning.sources.remote_folder import is_pattern
from broker_pipeline.errors import ConfigurationError, InvalidRequestError
from broker_pipeline.process.terminal import printable

MAX_PATHS = 100_000


def expanded(path: str) -> list[str]:
    """Return what braces, and wildcards of this machine, stand for; the path itself where it is there as it is.

    Hidden files fit no wildcard, and `**` stands for any folders. Raises `InvalidRequestError` for more than 100,000
    paths, or braces that are not closed, and `ConfigurationError` where nothing fits.
    """
    found = [each for text in without_braces(path) for each in (_fitting(text) if is_wildcard(text) else [text])]
    return _checked(path, found)


def is_wildcard(path: str) -> bool:
    """Whether a path of this machine stands for all that fit it."""
    return not scheme_of(path) and is_pattern(path) and not os.path.lexists(path)


def without_braces(path: str) -> list[str]:
    """Return what braces stand for, in order. Raises `InvalidRequestError`."""
    if "{" not in path or (not scheme_of(path) and os.path.lexists(path)):
        return [path]
    braces = need_package("braceexpand", printable(path))
    try:
        paths = list(islice(braces.braceexpand(path), MAX_PATHS + 1))
    except braces.UnbalancedBracesError as error:
        raise InvalidRequestError(f"{printable(path)}: a brace is not closed", field="PATHS") from error
    return _checked(path, paths)


def _fitting(pattern: str) -> list[str]:
    if found := sorted(islice(glob.iglob(pattern, recursive=True), MAX_PATHS + 1)):  # noqa: PTH207 - keeps what was typed
        return found
    raise ConfigurationError(f"{printable(pattern)} does not exist, and nothing fits it as a pattern", field="PATHS")


def _checked(path: str, paths: list[str]) -> list[str]:
    if len(paths) > MAX_PATHS:
        reason = f"{printable(path)} stands for more than {MAX_PATHS} paths; a folder with --include has no such limit"
        raise InvalidRequestError(reason, field="PATHS")
    return paths
