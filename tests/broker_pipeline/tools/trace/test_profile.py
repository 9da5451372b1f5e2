"""Traces of several processes and machines, joined."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.trace.command import command
from broker_pipeline.tools.trace.merge import write_merged
from broker_pipeline.tools.trace.profile import Window, load_profile
from broker_pipeline.tools.trace.spans import Span
from broker_pipeline.tools.trace.summary import summarise
from tests.kit.profiles import BEGAN, MS, Machine, Recording, two_stages


def in_ms(spans: Iterable[Span]) -> list[tuple[str, float, float]]:
    return [(span.name, (span.start - BEGAN) / MS, (span.stop - BEGAN) / MS) for span in spans]


def wires(directory: Path) -> list[tuple[str, float, float]]:
    profile = load_profile(directory)
    found = [span for process in profile.processes for span in process.spans if span.name == "wire"]
    return in_ms(sorted(found, key=lambda span: span.start))


def test_one_machine_has_one_axis_although_its_processes_anchored_apart(tmp_path: Path) -> None:
    here = Machine("here", up_ms=5_000)
    two_stages(tmp_path, here, here)
    assert wires(tmp_path) == [("wire", 1.0, 1.5), ("wire", 6.5, 7.5), ("wire", 11.5, 12.5)]


@pytest.mark.parametrize("ahead_ms", [-40.0, 0.0, 3.25])
def test_clocks_of_two_machines_are_set_by_their_messages(tmp_path: Path, ahead_ms: float) -> None:
    two_stages(tmp_path, Machine("near", up_ms=10), Machine("far", ahead_ms=ahead_ms, up_ms=777))
    assert wires(tmp_path) == [("wire", 1.0, 1.5), ("wire", 6.5, 7.5), ("wire", 11.5, 12.5)]
    skews = load_profile(tmp_path).alignment.skews
    assert skews == {"far": round(ahead_ms * MS)}


def test_a_wall_clock_that_is_set_meanwhile_moves_nothing_apart(tmp_path: Path) -> None:
    here = Machine("here")
    first = Recording(tmp_path, "conductor", "conductor", here, 1)
    first.sent("work", 1.0, epoch=1, microbatch=1)
    first.write()
    here.ahead_ns = 500 * MS
    second = Recording(tmp_path, "stage", "stage-0", here, 2)
    second.received("work", 2.0, epoch=1, microbatch=1)
    second.write()
    profile = load_profile(tmp_path)
    [message] = profile.messages
    assert message.arrived - message.left == 1 * MS
    assert profile.alignment.steps == {"here": 500 * MS}


def test_a_message_that_was_not_received_is_joined_to_none(tmp_path: Path) -> None:
    here = Machine("here")
    sender = Recording(tmp_path, "conductor", "conductor", here, 1)
    receiver = Recording(tmp_path, "stage", "stage-0", here, 2)
    for number in (1, 2, 3):
        sender.sent("work", number, epoch=1, microbatch=number)
    receiver.received("work", 2.5, epoch=1, microbatch=2)
    receiver.received("work", 9.0, epoch=2, microbatch=3)  # another conductor's
    sender.write()
    receiver.write()
    assert [message.encode.facts["microbatch"] for message in load_profile(tmp_path).messages] == [2]


def test_a_message_that_was_sent_twice_is_joined_in_order(tmp_path: Path) -> None:
    here = Machine("here")
    sender = Recording(tmp_path, "vision", "vision-0", here, 1)
    receiver = Recording(tmp_path, "stage", "stage-0", here, 2)
    for at in (1.0, 5.0):
        sender.sent("rows", at, "RowDelivery", session="a", attempt=1)
        receiver.received("rows", at + 1, "RowDelivery", session="a", attempt=1)
    sender.write()
    receiver.write()
    assert [(each.arrived - each.left) / MS for each in load_profile(tmp_path).messages] == [1.0, 1.0]


def test_the_figures_are_those_of_the_spans(tmp_path: Path) -> None:
    here = Machine("here")
    two_stages(tmp_path, here, here)
    summary = summarise(load_profile(tmp_path))
    conductor, first, second = summary.workers
    assert summary.num_microbatches == 1
    assert summary.round_ms["whole"] == pytest.approx(12.1)
    assert summary.round_ms["wire"] == pytest.approx(0.5 + 1.0 + 1.0)
    assert summary.round_ms["compute"] == pytest.approx(4.0 + 3.0)
    assert summary.round_ms["queue"] == pytest.approx(0.8)
    assert (first.wire_ms, first.queue_ms, first.compute_ms) == pytest.approx((0.5, 0.4, 4.0))
    assert first.outbox_ms == pytest.approx(0.4)
    assert first.busy == pytest.approx(4.0 / 5.1)
    assert second.host_us == pytest.approx({"receive": 100, "encode": 100, "send": 100})
    assert conductor.host_us == pytest.approx({"encode": 100, "send": 100, "receive": 100, "complete": 100})


def test_the_joined_trace_has_every_row_and_an_arrow_for_each_message(tmp_path: Path) -> None:
    here = Machine("here")
    two_stages(tmp_path, here, here)
    out = tmp_path / "out" / "trace.json"
    out.parent.mkdir()
    num_events = write_merged(load_profile(tmp_path), out)
    events: list[dict[str, Any]] = json.loads(out.read_bytes())["traceEvents"]
    assert len(events) == num_events
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["conductor on here", "stage-0 on here", "stage-1 on here"]
    slices = [event for event in events if event["ph"] == "X"]
    assert min(event["ts"] for event in events if event["ph"] != "M") == 0
    for ends in ("s", "f"):
        arrows = [event for event in events if event["ph"] == ends]
        assert len(arrows) == 3
        for arrow in arrows:
            assert any(
                each["pid"] == arrow["pid"]
                and each["tid"] == arrow["tid"]
                and each["ts"] <= arrow["ts"] <= each["ts"] + each["dur"]
                for each in slices
            ), "an arrow ends in a slice, or viewers draw none"


def test_a_window_keeps_what_goes_on_in_it(tmp_path: Path) -> None:
    here = Machine("here")
    two_stages(tmp_path, here, here)
    profile = load_profile(tmp_path, Window(start_s=0.006, length_s=0.002))
    assert {span.name for process in profile.processes for span in process.spans} == {
        *("microbatch", "wire", "receive", "queue", "step")
    }
    with pytest.raises(ConfigurationError, match="nothing was recorded"):
        load_profile(tmp_path, Window(start_s=10))


def test_the_commands_write_and_print(tmp_path: Path) -> None:
    two_stages(tmp_path, Machine("near"), Machine("far", ahead_ms=2))
    out = tmp_path.parent / f"{tmp_path.name}.json"
    merged = CliRunner().invoke(command, ["merge", str(tmp_path), "-o", str(out)], catch_exceptions=False)
    assert merged.exit_code == 0
    assert "3 processes, 3 messages" in merged.output
    assert json.loads(out.read_bytes())["traceEvents"]
    shown = CliRunner().invoke(command, ["summary", str(tmp_path)], catch_exceptions=False)
    assert "the wall clock of far is +2.00 ms ahead" in shown.output
    assert "stage-1" in shown.output
    figures = CliRunner().invoke(command, ["summary", str(tmp_path), "--json"], catch_exceptions=False)
    assert json.loads(figures.output)["num_microbatches"] == 1


def test_an_empty_directory_and_a_target_inside_of_the_profile_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did a service run with --profile"):
        load_profile(tmp_path)
    two_stages(tmp_path, Machine("here"), Machine("here"))
    with pytest.raises(ConfigurationError, match="alongside"):
        CliRunner().invoke(
            command, ["merge", str(tmp_path), "-o", str(tmp_path / "trace.json")], catch_exceptions=False
        )
