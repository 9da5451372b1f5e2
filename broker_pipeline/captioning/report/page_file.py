"""The page's file, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker_pipeline.captioning.output import kind_of
from broker_pipeline.errors import ConfigurationError, OutputError
from broker_pipeline.process.terminal import printable


class PageFile:
    """A file that somebody may look at while it is written again: they see the old page or the new one."""

    def __init__(self, path: Path) -> None:
        """Prepare to write the file at `path`; `ConfigurationError` where there is something else."""
        self._path = path
        with contextlib.suppress(OSError):
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigurationError(f"{printable(path)} is {kind_of(facts)}, not a regular file", field="report")

    def write(self, text: str) -> None:
        """Put a page there, and make its folder where that is missing. Raises `OutputError`."""
        target = self._path.resolve()  # a link stays one
        partial = target.with_name(f"{target.name}.partial")
        with self._writing():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(target)
            except OSError:
                partial.unlink(missing_ok=True)
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = f"cannot write the report {printable(self._path)}: {error.strerror}; choose another --report"
            raise OutputError(text, field="report") from error
