"""Which shards of a data set are finished, as `manifest.json` beside them says."""

from __future__ import annotations

from pathlib import Path

import msgspec

from broker_pipeline.captioning.sinks.new_file import write_whole
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.terminal import printable

_FORMAT = 1
"""Another number where later versions write other shards of the same rows."""


class Shard(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A finished file of the data set."""

    file: str
    rows: int
    bytes: int
    sha256: str
    rows_sha256: str
    """Of all that decides what is in the file."""
    unreadable: tuple[str, ...] = ()
    """Items that have their captions and are left out, as their pictures could not be read again."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The shards in order."""

    target: str
    """Name of the files, with `%05d` for their numbers."""
    settings: SinkSettings
    format: int = _FORMAT
    is_whole: bool = False
    """Whether the run came to its end, and nothing is unreadable."""
    num_rows: int = 0
    shards: tuple[Shard, ...] = ()
    left: tuple[str, ...] = ()
    """Files of an earlier run that this one has not replaced yet, and removes at its end."""

    @property
    def files(self) -> frozenset[str]:
        """All files that runs for this target have made."""
        return frozenset((*(shard.file for shard in self.shards), *self.left))

    def shards_with(self, settings: SinkSettings) -> tuple[Shard, ...]:
        """Return the shards, where they were made with these settings."""
        return self.shards if self.settings == settings and self.format == _FORMAT else ()


def load_manifest(path: Path, target: str, settings: SinkSettings) -> Manifest:
    """Return what is listed for this target; an empty one where nothing is.

    Raises `ConfigurationError` where the file lists shards of another target, and `OSError`.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return Manifest(target=target, settings=settings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = f"{printable(path)} is no manifest of shards; choose a folder of its own for them"
        raise ConfigurationError(reason, field="to") from error
    if found.target == target:
        return found
    if not found.files:  # a run that was refused, or killed, before its first shard
        return Manifest(target=target, settings=settings)
    reason = f"{printable(path.parent)} has the shards {printable(found.target)}; choose another folder for {target}"
    raise ConfigurationError(reason, field="to")


def save_manifest(path: Path, manifest: Manifest) -> None:
    """Write the file; raises `OutputError`."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
