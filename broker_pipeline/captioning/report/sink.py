"""Takes the rows of a run, and at its end writes a page about them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from broker_pipeline.captioning.report.page import Heading, render_page
from broker_pipeline.captioning.report.row_sample import RowSample
from broker_pipeline.captioning.report.row_tally import RowTally
from broker_pipeline.captioning.sinks.new_file import mode_of, nothing_to_replace, write_whole
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sources.item import Item


class ReportSink:
    """A page for a browser, in one file, which asks nobody for anything. Also a run that was interrupted has one."""

    def __init__(self, path: Path, title: str, clock: Callable[[], float] = time.time) -> None:
        """Prepare to write to `path`; `ConfigurationError` where there is something that is no file."""
        self._path = path
        with suppress(OSError):  # told when it is written
            mode_of(path, field="report")
        self._title = title
        self._clock = clock
        self._began_at = clock()
        self._tally = RowTally()
        self._sample = RowSample()

    def check(self, item: Item) -> None:
        """Take every item."""

    def add(self, row: Row) -> None:
        """Count the next row, and keep it where it is one of those to look at."""
        self._tally.add(row)
        self._sample.add(row)

    def close(self, *, is_whole: bool) -> None:
        """Write the page; without captions, an earlier one is kept. Raises `OutputError`."""
        if not self._tally.num_captioned and self._path.exists():
            if is_whole:
                raise nothing_to_replace(self._path, field="report")
            return
        heading = Heading(self._title, self._began_at, self._clock(), is_whole)
        page = render_page(heading, self._tally, self._sample.rows())
        write_whole(self._path, page.encode(), field="report")
