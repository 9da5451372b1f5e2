"""Whatever may lie in a folder: odd names, files that are none, files that hang, the same file twice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit.running.captioner import Captioner, CaptioningConductor, lines, numbered_picture
from tests.kit.waiting import eventually

NAMES = (
    *(b"caf\xe9.png", b"caf\\xe9.png", b"\xff\xfe.png", b"two\nlines.png", b"\x1b[31mred\x1b[0m.png", b"\r.png"),
    *("[bold]markup[bold].png", ":cat:.png", "back\\.png", "-dash.png", " .png", f"{'x' * 251}.png"),
    *("猫\u2028\u0085.png", "\u202egnp.png", "é.png", "e\u0301.png", "👩\u200d🚀.png"),
)


def file_of(line: dict[str, Any]) -> bytes:
    """Where a reader of the line finds the file."""
    return base64.b64decode(line["path_base64"]) if "path_base64" in line else line["path"].encode()


async def test_any_file_name_is_captioned_and_found_again(captioner: Captioner, conductor: CaptioningConductor) -> None:
    names = [os.fsencode(name) for name in NAMES]
    (captioner.directory / "odd").mkdir()
    for number, name in enumerate(names):
        path = captioner.directory / "odd" / os.fsdecode(name)
        path.write_bytes(numbered_picture(number // 2))  # the same content twice, so that names alone tell them apart
    run = await captioner.run("odd")
    assert run.code == 0, run.text
    assert captioner.out.read_text(encoding="utf-8").splitlines() == captioner.out.read_text().split("\n")[:-1]
    assert {file_of(line) for line in lines(captioner.out)} == {b"odd/" + name for name in names}
    assert "odd/caf\\xe9.png: picture of" in run.text
    assert "odd/two\\nlines.png: picture of" in run.text
    assert "odd/[bold]markup[bold].png: " in run.text
    assert "odd/:cat:.png: " in run.text
    assert not {"\x1b", "\r", "\u202e", "\u2028"} & {*run.text}
    again = await captioner.run("odd")
    assert f"{len(names)} had captions already" in again.text
    assert len(lines(captioner.out)) == len(names)


async def test_a_name_that_one_sink_cannot_have_is_said_and_costs_no_other_row(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    (captioner.directory / "odd").mkdir()
    names = [os.fsdecode(b"caf\xe9.png"), "plain.png", f"{'x' * 251}.png"]
    for number, name in enumerate(names):
        (captioner.directory / "odd" / name).write_bytes(numbered_picture(number))
    flags = ("--to", "odd/metadata.jsonl", "--to", "all.jsonl", "--sidecar", ".txt", "--ask", "short=Shorten.")
    run = await captioner.run("odd", "--prompt", "What?", *flags)
    assert run.code == 1, run.text
    assert "2 rows: odd/caf\\xe9.png: metadata in odd cannot name it" in run.text  # and a name too long
    assert [row["file_name"] for row in lines(captioner.directory / "odd/metadata.jsonl")] == names[1:]
    assert len(lines(captioner.directory / "all.jsonl")) == len(names)
    assert (captioner.directory / "odd" / os.fsdecode(b"caf\xe9.short.txt")).exists()


async def test_a_name_is_escaped_wherever_it_is_printed(captioner: Captioner, conductor: CaptioningConductor) -> None:
    (captioner.directory / "a.png").write_bytes(numbered_picture(0))
    (captioner.directory / os.fsdecode(b"no\nfolder\xe9")).touch()
    for argv in ((b"gone\n\xe9",), (b"a.png", b"--out", b"no\nfolder\xe9/out")):
        run = await captioner.run(*argv)
        assert run.code == 2, run.text
        assert "\\n" in run.text
        assert "\\xe9" in run.text
        assert len(run.text.splitlines()) == 1, run.text


async def test_special_files_are_named_and_not_opened(captioner: Captioner, conductor: CaptioningConductor) -> None:
    here = captioner.directory / "special"
    here.mkdir()
    (here / "real.png").write_bytes(numbered_picture(0))
    (here / "folder.png").mkdir()
    (here / "folder.png" / "inside.png").write_bytes(numbered_picture(1))
    os.mkfifo(here / "pipe.png")
    (here / "endless.png").symlink_to("/dev/zero")
    (here / "gone.png").symlink_to("nowhere")
    (here / "loop.png").symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as listening:
        with contextlib.chdir(here):  # the name of a socket may not be long
            listening.bind("socket.png")
        run = await captioner.run("special", "special/pipe.png")
    assert run.code == 1
    assert "2 captioned" in run.text
    reasons = {Path(line["path"]).name: line["error"]["message"] for line in lines(captioner.out) if "error" in line}
    assert reasons == {
        "pipe.png": "a named pipe, not a regular file",
        "endless.png": "a character device, not a regular file",
        "socket.png": "a socket, not a regular file",
        "gone.png": "No such file or directory",
        "loop.png": "Too many levels of symbolic links",
    }
    assert {line["error"]["code"] for line in lines(captioner.out) if "error" in line} == {"unreadable_file"}


async def test_a_folder_that_cannot_be_listed_is_named(captioner: Captioner, conductor: CaptioningConductor) -> None:
    """Folders inside folders may have longer paths than the system takes."""
    (captioner.directory / "deep").mkdir()
    (captioner.directory / "deep" / "a.png").write_bytes(numbered_picture(0))
    _nest(captioner.directory / "deep", depth=18)
    run = await captioner.run("deep")
    assert run.code == 1
    assert "1 captioned" in run.text
    assert "1 failed" in run.text
    refused = next(line for line in lines(captioner.out) if line["status"] == "refused")
    assert refused["error"] == {"code": "unreadable_file", "message": "File name too long"}


async def test_a_run_ends_although_a_read_hangs(captioner: Captioner, conductor: CaptioningConductor) -> None:
    (captioner.directory / "a.png").write_bytes(numbered_picture(0))
    (captioner.directory / "held.png").write_bytes(numbered_picture(1))
    with leased(captioner.directory / "held.png"):
        process = await captioner.start("a.png", "held.png")
        await eventually(lambda: len(lines(captioner.out)) == 1)
        await eventually(lambda: _waits_for_lease(process.pid))
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60.0):
            run = await captioner.finish(process)
    assert run.code == 130
    assert "1 not done" in run.text


async def test_one_picture_by_two_paths_is_one(captioner: Captioner, conductor: CaptioningConductor) -> None:
    here = captioner.directory / "real"
    here.mkdir()
    (here / "a.png").write_bytes(numbered_picture(0))
    (here / "b.png").write_bytes(numbered_picture(0))
    (captioner.directory / "link.png").symlink_to("real/a.png")
    (captioner.directory / "linked").symlink_to("real")
    (here / "hard.png").hardlink_to(here / "a.png")
    run = await captioner.run("link.png", "linked", "real/../real", str(here))
    assert run.code == 0, run.text
    assert sorted(line["path"] for line in lines(captioner.out)) == ["link.png", "linked/b.png"], "named as typed"
    assert "taken once: 8 pictures" in run.text
    again = await captioner.run(str(here / "a.png"), "real/b.png")
    assert "2 had captions already" in again.text
    assert sum(conductor.seen.values()) == 1, "the two files have the same content"


def _nest(folder: Path, depth: int) -> None:
    """Make folders inside folders by steps, since no path leads to the last ones."""
    with contextlib.chdir(folder):
        for _ in range(depth):
            Path("d" * 250).mkdir()
            os.chdir("d" * 250)


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Have everybody who opens a file wait: its holder is asked to give up a lease, and does not."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


def _waits_for_lease(pid: int) -> bool:
    wchans = [task / "wchan" for task in Path(f"/proc/{pid}/task").iterdir()]
    return any("break_lease" in wchan.read_text() for wchan in wchans)
