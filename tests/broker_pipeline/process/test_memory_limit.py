"""What limits of control groups leave, in both versions, from the innermost group to the outermost."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from broker_pipeline.process.memory_limit import left_bytes

SECOND = ("memory.max", "anon 3000\nfile 90000\nshmem 500\ninactive_file 89500\n")
FIRST = ("memory.limit_in_bytes", "cache 90000\nrss 1\ntotal_cache 90000\ntotal_rss 3000\ntotal_shmem 500\n")


def group(directory: Path, files: tuple[str, str], limit: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / files[0]).write_text(f"{limit}\n")
    (directory / "memory.stat").write_text(files[1])


@pytest.mark.parametrize(("files", "top", "line"), [(SECOND, "", "0::"), (FIRST, "memory", "4:cpu,memory:")])
def test_the_tightest_group_around_a_process_counts_and_cached_files_are_free(
    tmp_path: Path, files: tuple[str, str], top: str, line: str
) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text(f"7:blkio:/\n{line}/slice/service\n")
    assert left_bytes(root, own) == math.inf
    assert left_bytes(root, tmp_path / "none") == math.inf
    group(root / top, files, "10000")  # a container's own, by which its path outside leads nowhere
    assert left_bytes(root, own) == 6500
    group(root / top / "slice/service", files, "8000")
    assert left_bytes(root, own) == 4500
    group(root / top / "slice", files, "1000")
    assert left_bytes(root, own) == 0


def test_no_limit_is_none(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/\n")
    group(tmp_path, SECOND, "max")
    assert left_bytes(tmp_path, tmp_path / "own") == math.inf
