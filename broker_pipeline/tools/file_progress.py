"""What a person sees while an export or a verification runs: a bar on a terminal, one line per file elsewhere."""

from __future__ import annotations

from threading import Lock
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class ProgressReport:
    """Counts bytes and files; may be told from several threads at once. A context manager."""

    def __init__(self, what: str, total_bytes: int, num_files: int, console: Console) -> None:
        self._what = what
        self._num_files = num_files
        self._num_done = 0
        self._lock = Lock()
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total_bytes)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, num_bytes: int) -> None:
        """Tell that bytes were written or checked."""
        self._bar.advance(self._task, num_bytes)

    def file_done(self, name: str, size_bytes: int, how: str) -> None:
        """Tell that a file is finished; `how` is a word such as "written" or "checked"."""
        with self._lock:  # also while it is shown, or a lower number could come last
            self._num_done += 1
            counter = f"{self._num_done}/{self._num_files}"
            if self._console.is_terminal:
                self._bar.update(self._task, description=f"{self._what} {counter}")
            else:
                self._console.print(f"{counter} {how} {name} ({decimal(size_bytes)})", highlight=False, soft_wrap=True)
