"""Which weight files a host needs for what it is to do. The small files belong on every host.

stage of blocks [a, b)    block-a … block-(b-1)    embed where a is 0    head, and a tied embed, where b is the last
vision worker             vision
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

from broker_pipeline.artifact_manifest import EMBED_FILE, HEAD_FILE, VISION_FILE, WeightsManifest, block_file
from broker_pipeline.messages.workers import BlockRange

_FLAGS = {VISION_FILE: "--vision", EMBED_FILE: "--embeddings", HEAD_FILE: "--head"}


def stage_files(manifest: WeightsManifest, blocks: BlockRange) -> set[str]:
    """Return the names of the weight files of a stage."""
    files = {block_file(block) for block in range(blocks.start, blocks.stop)}
    if blocks.start == 0:
        files.add(EMBED_FILE)
    if blocks.stop == manifest.num_blocks:
        files.add(HEAD_FILE)
        files |= {record.file for record in manifest.tensors if record.tied_to is not None}
    return files


def fetch_command(manifest: WeightsManifest, files: Collection[str], directory: Path) -> str:
    """Return the command that brings weight files into a directory; FROM in it is for the user to fill in."""
    ranges = list(_block_ranges(manifest, files))
    implied = {file for blocks in ranges for file in stage_files(manifest, blocks)}
    flags = [f"--blocks {blocks.start}:{blocks.stop}" for blocks in ranges]
    flags += [flag for file, flag in _FLAGS.items() if file in files and file not in implied]
    return f"broker-pipeline fetch {' '.join(flags)} FROM {shlex.quote(str(directory))}"


def _block_ranges(manifest: WeightsManifest, files: Collection[str]) -> Iterator[BlockRange]:
    start = None
    for block in range(manifest.num_blocks + 1):
        is_among = block < manifest.num_blocks and block_file(block) in files
        if is_among and start is None:
            start = block
        elif not is_among and start is not None:
            yield BlockRange(start=start, stop=block)
            start = None
