"""What sinks leave where they are killed, or the disk is full."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.target import open_sink
from broker_pipeline.errors import OutputError
from tests.broker_pipeline.captioning.sinks.made_rows import file_row, fill, line, table_rows
from tests.kit.running.captioner import folder, numbered_picture
from tests.kit.running.small_disk import needs_mounting, resize, small_disk

SHORT = SinkSettings(shard_rows=4)
TARGETS = ["out-%05d.tar", "out-%05d.parquet", "set/", "out.jsonl", "out.csv", "out.parquet"]

_KILLED = """
import os, signal, sys
from dataclasses import replace
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.target import open_sink
from tests.broker_pipeline.captioning.sinks.made_rows import fill, table_rows

class Killing(dict):
    def items(self):
        os.kill(os.getpid(), signal.SIGKILL)

def read():
    os.kill(os.getpid(), signal.SIGKILL)

rows = table_rows(10)
rows[6] = replace(rows[6], item=replace(rows[6].item, read=read, fields=Killing(rows[6].item.fields)))
fill(open_sink(sys.argv[1], SinkSettings(shard_rows=4)), rows)
"""
"""Dies while the second shard is written, or the seventh row of a table."""


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("target", TARGETS)
def test_a_killed_run_leaves_nothing_half_and_the_next_one_all(tmp_path: Path, target: str) -> None:
    once, killed = tmp_path / "once", tmp_path / "killed"
    fill(open_sink(f"{once}/{target}", SHORT), table_rows(10))
    done = subprocess.run([sys.executable, "-c", _KILLED, f"{killed}/{target}"], check=False)
    assert done.returncode == -signal.SIGKILL
    whole = files(once)
    left = {name: content for name, content in files(killed).items() if not name.endswith((".partial", ".json"))}
    assert left.items() <= whole.items()
    fill(open_sink(f"{killed}/{target}", SHORT), table_rows(10))
    assert files(killed) == whole


@needs_mounting
@pytest.mark.parametrize("target", TARGETS)
def test_a_full_disk_is_named_and_the_next_run_writes_all(tmp_path: Path, target: str) -> None:
    rows = [large(row, number) for number, row in enumerate(table_rows(10))]
    once, small = tmp_path / "once", tmp_path / "small"
    fill(open_sink(f"{once}/{target}", SHORT), rows)
    with small_disk(small, "1M"):
        (small / "filler").write_bytes(bytes(800_000))
        with pytest.raises(OutputError, match=r"cannot write .*: No space left on device; run the same command again"):
            run_to_the_end(f"{small}/{target}", rows)
        assert not [name for name in files(small) if name.endswith(".partial")]
        resize(small, "16M")
        (small / "filler").unlink()
        fill(open_sink(f"{small}/{target}", SHORT), rows)
        assert files(small) == files(once)


def run_to_the_end(target: str, rows: list[Row]) -> None:
    """Close as a run does: not whole where a row could not be added."""
    sink = open_sink(target, SHORT)
    try:
        for row in rows:
            sink.add(row)
    except BaseException:
        sink.close(is_whole=False)
        raise
    sink.close(is_whole=True)


def large(row: Row, number: int) -> Row:
    """Return a row whose picture and caption no format makes smaller."""
    content = random.Random(number).randbytes(60_000)
    return Row(replace(row.item, read=lambda: content), {"caption": line(row.item.id, content.hex(), content=content)})


def test_a_picture_that_changed_since_it_was_captioned_is_left_out(tmp_path: Path) -> None:
    rows = [file_row(path) for path in sorted(folder(tmp_path / "pictures", 2).rglob("*.png"))]
    assert rows[0].item.path
    rows[0].item.path.write_bytes(numbered_picture(7))
    with pytest.raises(OutputError, match=r"1 item could not be read again, or changed meanwhile, .*000\.png"):
        fill(open_sink(f"{tmp_path}/out/%05d.tar", SinkSettings()), rows)
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        assert [name.rpartition("/")[2] for name in tar.getnames() if name.endswith(".png")] == ["001.png"]


def test_keys_that_two_tars_share_stay_two_samples(tmp_path: Path) -> None:
    item = table_rows(1)[0].item
    rows = [Row(replace(item, id=f"{name}.tar::0001"), {"caption": line(name, content=item.read())}) for name in "ab"]
    fill(open_sink(f"{tmp_path}/out-%05d.tar", SHORT), rows)
    with tarfile.open(tmp_path / "out-00000.tar") as tar:
        names = tar.getnames()
    assert names == ["0001.png", "0001.txt", "0001.json", "0001-2.png", "0001-2.txt", "0001-2.json"]
