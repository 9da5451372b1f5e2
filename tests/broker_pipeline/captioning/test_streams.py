"""Where captions and messages go: pipes, closed streams, full disks, outputs that are no files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import chdir

import pytest

from tests.kit.running.captioner import Captioner, CaptioningConductor, folder, lines, numbered_picture
from tests.kit.running.small_disk import needs_mounting, resize, small_disk
from tests.kit.waiting import eventually

PIPE = asyncio.subprocess.PIPE


def shell(redirection: str) -> tuple[str, ...]:
    """What to put in front of a command for a redirection."""
    return ("sh", "-c", f'exec "$@" {redirection}', "sh")


async def test_captions_go_to_standard_output(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 5)
    run = await captioner.run("pictures", "--out", "-", stderr=PIPE)
    assert run.code == 0, run.errors
    assert sorted(json.loads(line)["path"] for line in run.text.splitlines()) == [
        f"pictures/part-{number % 3}/{number:03}.png" for number in (0, 3, 1, 4, 2)
    ]
    assert "5 captioned" in run.errors
    assert "in standard output" in run.errors
    assert not (captioner.directory / "-").exists()


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "1>&-", "0<&- 1>&- 2>&-"])
async def test_a_run_needs_nobody_to_tell(
    captioner: Captioner, conductor: CaptioningConductor, redirection: str
) -> None:
    folder(captioner.directory / "pictures", 5)
    run = await captioner.run("pictures", before=shell(redirection))
    assert run.code == 0, run.text
    assert [line["status"] for line in lines(captioner.out)] == ["succeeded"] * 5, "nothing else is in the file"


async def test_a_reader_of_messages_may_go(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 5)
    read, write = os.pipe()
    os.close(read)
    run = await captioner.run("pictures", stderr=write)
    os.close(write)
    assert run.code == 0
    assert len(lines(captioner.out)) == 5


@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "standard output is closed")]
)
async def test_output_that_cannot_be_written_ends_the_run(
    captioner: Captioner, conductor: CaptioningConductor, redirection: str, reason: str
) -> None:
    folder(captioner.directory / "pictures", 5)
    run = await captioner.run("pictures", "--out", "-", before=shell(redirection), stderr=PIPE)
    assert run.code == 74
    assert reason in run.errors.splitlines()[-1]
    assert "Traceback" not in run.errors


async def test_a_reader_of_captions_may_go(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 5)
    read, write = os.pipe()
    os.close(read)
    run = await captioner.run("pictures", "--out", "-", stdout=write, stderr=PIPE)
    os.close(write)
    assert run.code == 74
    assert "Broken pipe" in run.errors.splitlines()[-1]


async def test_a_full_disk_is_said_in_one_line_and_costs_nothing(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    """A limit on the size of files stands for the disk: the system writes a part of a line, then refuses."""
    folder(captioner.directory / "pictures", 20)
    run = await captioner.run("pictures", before=("prlimit", "--fsize=3000"))
    assert run.code == 74, run.text
    last = run.text.splitlines()[-1]
    assert last.startswith("error: cannot write captions.jsonl: File too large; run the same command again")
    assert "Traceback" not in run.text
    written = lines(captioner.out)
    assert 0 < len(written) < 20
    assert captioner.out.read_bytes().endswith(b"}\n"), "the part of a line is taken back"
    again = await captioner.run("pictures")
    assert again.code == 0, again.text
    assert "torn" not in again.text
    assert len({line["path"] for line in lines(captioner.out)}) == len(lines(captioner.out)) == 20
    assert set(conductor.seen.values()) == {1}, "jobs that had been accepted are found again"


@needs_mounting
async def test_a_run_goes_on_once_the_disk_has_room(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 30)
    disk = captioner.directory / "disk"
    with small_disk(disk, "12k"):
        run = await captioner.run("pictures", "--out", "disk/out.jsonl")
        assert run.code == 74, run.text
        assert run.text.splitlines()[-1].startswith("error: cannot write disk/out.jsonl: No space left on device; run")
        assert 0 < len(lines(disk / "out.jsonl")) < 30
        resize(disk, "1m")
        assert (await captioner.run("pictures", "--out", "disk/out.jsonl")).code == 0
        assert len({line["path"] for line in lines(disk / "out.jsonl")}) == len(lines(disk / "out.jsonl")) == 30
    assert set(conductor.seen.values()) == {1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pipe", "a named pipe"),
        ("socket", "a socket"),
        ("folder", "a directory"),
        ("/dev/null", "a character device"),
        ("/dev/stdout", "a named pipe"),
    ],
)
async def test_only_regular_files_are_written_to(
    captioner: Captioner, conductor: CaptioningConductor, name: str, kind: str
) -> None:
    (captioner.directory / "a.png").write_bytes(numbered_picture(0))
    (captioner.directory / "folder").mkdir()
    os.mkfifo(captioner.directory / "pipe")
    with socket.socket(socket.AF_UNIX) as listening, chdir(captioner.directory):
        listening.bind("socket")
        run = await captioner.run("a.png", "--out", name)
    assert run.code == 2
    assert f"{name} is {kind}, not a regular file; `--out -` writes to standard output" in run.text
    assert not conductor.seen


async def test_nohup_keeps_a_run_alive(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 20)
    conductor.most = 2
    process = await captioner.start("pictures", "--concurrency", "2", before=("nohup",))
    await eventually(lambda: len(lines(captioner.out)) >= 2)
    process.send_signal(signal.SIGHUP)
    conductor.may_go_on.set()
    assert (await captioner.finish(process)).code == 0
    assert len(lines(captioner.out)) == 20


@pytest.mark.parametrize(
    ("command", "errors"),
    [
        (("status",), ""),
        (("status", "--json"), ""),
        (("failed", "list"), ""),
        (("status",), "2>/dev/full"),
        (("status",), "2>&-"),
    ],
)
async def test_any_command_says_in_one_line_that_its_output_is_full(
    captioner: Captioner, command: tuple[str, ...], errors: str
) -> None:
    words = (sys.executable, "-m", "broker_pipeline", *command, "--gateway", captioner.url)
    process = await asyncio.create_subprocess_exec(*shell(f">/dev/full {errors}"), *words, stderr=PIPE)
    _, said = await process.communicate()
    assert process.returncode == 74
    assert said.decode() == ("" if errors else "error: cannot write the output: No space left on device\n")
