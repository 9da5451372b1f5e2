"""What a person sees of a start."""

from __future__ import annotations

import io

from rich.console import Console

from broker_pipeline.tools.local.view import LiveView, PlainView


def test_a_warning_is_a_line_among_lines() -> None:
    output = io.StringIO()
    view = PlainView(Console(file=output, width=200))
    view.warn("jobs of another model: 3")
    view.say("ready")
    assert [line.split("  ")[-1] for line in output.getvalue().splitlines()] == ["jobs of another model: 3", "ready"]


def test_a_warning_stays_below_the_table_whatever_is_said_after_it() -> None:
    output = io.StringIO()
    view = LiveView(Console(file=output, width=200, force_terminal=True))
    with view.showing():
        view.warn("jobs of another model: 3")
        view.say("ready: http://127.0.0.1:1")
    last_frame = output.getvalue().rpartition("state")[2]
    assert "jobs of another model: 3" in last_frame
    assert "ready" not in last_frame
