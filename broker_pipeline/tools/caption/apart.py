"""Keeps what a run writes apart from what it reads, in this run and in the next one of the same flags."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

from broker_pipeline.captioning.sinks.shards import NUMBER, shards_of
from broker_pipeline.captioning.sources.braces import is_wildcard, without_braces
from broker_pipeline.captioning.sources.location import ending_of, local_path
from broker_pipeline.captioning.sources.remote_folder import is_pattern
from broker_pipeline.captioning.sources.settings import VIDEO_ENDINGS
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.pictures.formats import ENDINGS
from broker_pipeline.process.terminal import printable
from broker_pipeline.tools.caption.recipe import recipe_of

_IN_FOLDERS = (".tar", ".parquet")
"""Of what is written, this is read where a URL names a folder."""


def check_apart(typed: Sequence[str], paths: Sequence[str], options: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that are read or written, by their real paths, with the flag that names each.

    `paths` are what the `typed` ones stand for.

    Raises `ConfigurationError` where one would replace another, or where the next run would read it as a source.
    """
    out, report = options["out"], options["report"]
    other: list[tuple[str, str | Path | None]] = [("PATHS", file) for file in paths if not Path(file).is_dir()]
    other += [("--files-from", options["files_from"]), ("--out", out), ("the recipe of --out", recipe_of(out))]
    known = {os.path.realpath(path): flag for flag, path in other if path is not None}
    written = [(flag, str(path)) for flag, path in (("--out", out), ("--report", report)) if path is not None]
    written += [("--to", target) for target in options["to"]]
    sidecar = options["sidecar"] and f"a.{options['sidecar'].removeprefix('.')}"
    for flag, path in [*written, *([("--sidecar", sidecar)] if sidecar else [])]:
        if ending_of(path) in ENDINGS | VIDEO_ENDINGS:
            raise _refused(flag, path, "it is called like a picture, which the next run would read")
    for flag, path in written:
        if pattern := next((each for each in typed if _is_read(path, each)), None):
            reason = f"the next run would read it as part of {printable(pattern)}; write it elsewhere"
            raise _refused(flag, path, reason)
        if flag != "--out":
            _take(known, flag, path)
    _check_folders(options["to"])
    return known


def _check_folders(targets: Sequence[str]) -> None:
    """Refuse shards in a folder of others, since it has one manifest."""
    taken: dict[str, str] = {}
    for target in targets:
        if not NUMBER.search(shards := _first_file(target, "%05d")):
            continue
        if (other := taken.setdefault(os.path.realpath(Path(shards).parent), target)) != target:
            raise _refused("--to", target, f"{printable(other)} has this folder; choose another one")


def _take(known: dict[str, str], flag: str, path: str) -> None:
    real = os.path.realpath(path)
    replaced = shards_of(real)  # where it is a pattern: shards replace, and delete, what is so called
    if named := next((other for file, other in known.items() if file == real or replaced.fullmatch(file)), None):
        raise _refused(flag, path, f"{named} names this file already, which would be replaced")
    known[real] = flag


def _refused(flag: str, path: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{flag} {printable(path)}: {reason}", field=flag.strip("-"))


def _is_read(target: str, source: str) -> bool:
    """Whether a file of a target fits a pattern, or is below a folder of a `file:` URL, that PATHS have."""
    name = os.path.realpath(_first_file(NUMBER.sub("00000", target), "00000"))
    return any(_fits(name, pattern) for pattern in _patterns(source))


def _first_file(target: str, number: str) -> str:
    """Return the table or shard that a target means, with `number` in the name of a data set's."""
    return f"{target}data/train-{number}.parquet" if target.endswith("/") else target


def _patterns(source: str) -> Iterator[str]:
    for each in without_braces(source):
        place = local_path(each) or each
        if is_wildcard(each) or (place != each and is_pattern(each)):
            yield os.path.realpath(place)
        elif place != each and Path(place).is_dir():
            yield from (f"{os.path.realpath(place)}/**{ending}" for ending in _IN_FOLDERS)


def _fits(name: str, pattern: str) -> bool:
    if "**" in pattern:
        return fnmatchcase(name, pattern.replace("**/", "*"))
    return PurePath(name).match(pattern)
