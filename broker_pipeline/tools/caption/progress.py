"""Shows a run as it goes: a bar on a terminal, a line now and then elsewhere. And what came of it, at the end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from broker_pipeline.captioning.line import CaptionLine, describe_line
from broker_pipeline.captioning.rate_meter import RateMeter, clock_text
from broker_pipeline.captioning.run import Summary
from broker_pipeline.terminal import printable

PLAIN_INTERVAL_S = 5.0
_NUM_SHOWN_CAPTIONS = 20
_NUM_EXAMPLES = 3


class CaptionProgress:
    """Takes part in a run as its `Progress`."""

    def __init__(self, console: Console, num_pictures: int) -> None:
        """Show the progress of `num_pictures` on a console."""
        self._console = console
        self._num_pictures = num_pictures
        self._meter = RateMeter()
        self._num_skipped = self._num_captioned = self._num_failed = 0
        self._bar: Progress | None = None
        self._last_line = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar, where there is a terminal to show it on."""
        if not self._console.is_terminal:
            yield
            return
        columns = (
            TextColumn("captions"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[failed]}", style="red"),
        )
        with Progress(*columns, console=self._console, refresh_per_second=5) as self._bar:
            self._task = self._bar.add_task("", total=self._num_pictures, rate="", left="--:--", failed="")
            yield
        self._bar = None

    def skipped(self) -> None:
        """Take note of a picture that had its caption already."""
        self._num_skipped += 1
        self._update()

    def finished(self, line: CaptionLine) -> None:
        """Take note of a picture that was captioned, or failed."""
        self._meter.count()
        if line.is_success:
            self._num_captioned += 1
        else:
            self._num_failed += 1
        if self._num_pictures <= _NUM_SHOWN_CAPTIONS:
            say(self._console, describe_line(line), style="" if line.is_success else "red")
        self._update()

    @property
    def _num_done(self) -> int:
        return self._num_skipped + self._num_captioned + self._num_failed

    def _update(self) -> None:
        if self._bar is not None:
            failed = f"{self._num_failed} failed" if self._num_failed else ""
            self._bar.update(self._task, completed=self._num_done, rate=self._rate(), left=self._left(), failed=failed)
        elif not self._console.is_terminal and time.monotonic() - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            say(self._console, self.plain_line())

    def plain_line(self) -> str:
        """Return the state of the run in one line."""
        parts = [f"{self._num_done} of {self._num_pictures} pictures"]
        parts += [f"{self._num_skipped} skipped"] if self._num_skipped else []
        parts += [f"{self._num_failed} failed"] if self._num_failed else []
        parts += [self._rate(), f"{self._left()} left"]
        return ", ".join(part for part in parts if part)

    def _rate(self) -> str:
        rate = self._meter.per_second()
        return "" if rate is None else f"{rate:.1f}/s"

    def _left(self) -> str:
        return clock_text(self._meter.remaining_s(self._num_pictures - self._num_done))


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is, on one line."""
    console.print(Text(text, style=style), soft_wrap=True)


def print_summary(console: Console, summary: Summary, out: str, elapsed_s: float) -> None:
    """Say what came of a run, and why what failed did."""
    rate = f" ({summary.num_captioned / elapsed_s:.1f}/s)" if summary.num_captioned and elapsed_s > 0 else ""
    facts = [f"{summary.num_captioned} captioned in {clock_text(elapsed_s)}{rate}"]
    facts += [f"{summary.num_skipped} had captions already"] if summary.num_skipped else []
    facts += [f"{len(summary.failed)} failed"] if summary.failed else []
    facts += [f"{summary.num_untouched} not done"] if summary.num_untouched else []
    say(console, f"{', '.join(facts)}; in {out}")
    for reason, paths in _by_reason(summary.failed).items():
        examples = ", ".join(map(printable, paths[:_NUM_EXAMPLES])) + (", …" if len(paths) > _NUM_EXAMPLES else "")
        say(console, f"  {len(paths)} x {printable(reason)}: {examples}")
    if summary.num_left_running:
        say(console, f"{summary.num_left_running} jobs that were accepted keep running.")


def _by_reason(failed: list[CaptionLine]) -> dict[str, list[str]]:
    """Group failed pictures by what went wrong, the most frequent first."""
    groups: dict[str, list[str]] = defaultdict(list)
    messages: dict[str, str] = {}
    for line in failed:
        code = line.error.code if line.error else line.status
        messages.setdefault(code, line.error.message if line.error else "")
        groups[code].append(line.path)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {f"{code} ({messages[code]})" if messages[code] else code: paths for code, paths in ordered}
