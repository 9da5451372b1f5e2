"""Shows a run as it goes: a bar on a terminal, a line now and then elsewhere. And what came of it, at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from broker_pipeline.captioning.line import CaptionLine, describe_line
from broker_pipeline.captioning.rate_meter import RateMeter, clock_text
from broker_pipeline.captioning.summary import Failures, Summary
from broker_pipeline.process.terminal import counted, printable

PLAIN_INTERVAL_S = 5.0
_NUM_SHOWN_CAPTIONS = 20
_NUM_EXAMPLES = 3


class CaptionProgress:
    """Takes part in a run as its `Progress`."""

    def __init__(self, console: Console, summary: Summary) -> None:
        """Show on a console what `summary` comes to."""
        self._console = console
        self._summary = summary
        self._meter = RateMeter()
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
            self._task = self._bar.add_task("", total=self._summary.num_items, rate="", left="--:--", failed="")
            yield
        self._bar = None

    def skipped(self) -> None:
        """Take note of an item that had its captions already, or was passed over."""
        self._update()

    def finished(self, lines: Sequence[CaptionLine]) -> None:
        """Take note of an item that was captioned, dropped, or failed."""
        self._meter.count()
        if (self._summary.num_items or sys.maxsize) <= _NUM_SHOWN_CAPTIONS:
            for line in lines:
                say(self._console, describe_line(line), style="" if line.is_success else "red")
        self._update()

    def _update(self) -> None:
        if self._bar is not None:
            num_failed = self._summary.num_failed
            failed = f"{num_failed} failed" if num_failed else ""
            done = self._summary.num_done
            self._bar.update(self._task, completed=done, rate=self._rate(), left=self._left(), failed=failed)
        elif not self._console.is_terminal and time.monotonic() - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            say(self._console, self.plain_line())

    def plain_line(self) -> str:
        """Return the state of the run in one line."""
        summary = self._summary
        num = summary.num_done if summary.num_items is None else summary.num_items
        of_all = "" if summary.num_items is None else f" of {summary.num_items}"
        parts = [f"{summary.num_done}{of_all} {'picture' if num == 1 else 'pictures'}"]
        parts += [f"{summary.num_skipped} skipped"] if summary.num_skipped else []
        parts += [f"{summary.num_failed} failed"] if summary.num_failed else []
        parts += [self._rate(), f"{self._left()} left"]
        return ", ".join(part for part in parts if part)

    def _rate(self) -> str:
        rate = self._meter.per_second()
        return "" if rate is None else f"{rate:.1f}/s"

    def _left(self) -> str:
        known = self._summary.num_items is not None
        return clock_text(self._meter.remaining_s(self._summary.num_untouched) if known else None)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is, on one line."""
    console.print(Text(text, style=style), soft_wrap=True)


def print_summary(console: Console, summary: Summary, out: str, elapsed_s: float) -> None:
    """Say what came of a run, and why what failed did."""
    rate = f" ({summary.num_captioned / elapsed_s:.1f}/s)" if summary.num_captioned and elapsed_s > 0 else ""
    facts = [f"{summary.num_captioned} captioned in {clock_text(elapsed_s)}{rate}"]
    counts = {
        "had captions already": summary.num_skipped,
        "dropped by guards": summary.num_dropped,
        "failed": summary.num_failed,
        "passed over": summary.num_passed_over,
        "not done": summary.num_untouched,
    }
    facts += [f"{num} {what}" for what, num in counts.items() if num]
    say(console, f"{', '.join(facts)}; in {out}")
    for (code, _), failed in sorted(summary.failures.items(), key=lambda each: -each[1].num):
        _say_failures(console, code, failed)
    for reason, num in summary.guards.most_common():
        say(console, f"  guard: {num} x {printable(reason)}")
    if summary.num_left_out:
        say(
            console,
            f"  without a place in what is written: {counted(summary.num_left_out, 'row')}: {summary.first_left_out}",
        )
    if summary.num_left_running:
        say(console, f"Accepted, and carried on without this command: {counted(summary.num_left_running, 'job')}.")


def _say_failures(console: Console, code: str, failed: Failures) -> None:
    shown = failed.examples[:_NUM_EXAMPLES]
    examples = ", ".join(map(printable, shown)) + (", …" if failed.num > len(shown) else "")
    reason = f"{code} ({failed.message})" if failed.message else code
    say(console, f"  {failed.num} x {printable(reason)}: {examples}")
