"""The command `broker-pipeline fetch`."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from broker_pipeline.artifact_files.block_range import parse_block_range
from broker_pipeline.artifact_files.selection import stage_files
from broker_pipeline.artifact_manifest import EMBED_FILE, HEAD_FILE, VISION_FILE, WeightsManifest
from broker_pipeline.config import PathType
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.exit_codes import INTERRUPTED
from broker_pipeline.logs import configure_logs
from broker_pipeline.process.terminal import make_console
from broker_pipeline.tools.fetch.http_source import HttpSource
from broker_pipeline.tools.fetch.run import Fetch
from broker_pipeline.tools.fetch.source import DirectorySource, Source
from broker_pipeline.tools.signals import until_interrupted

ROLES = ("stage", "vision", "conductor", "gateway")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a host is to have."""

    blocks: tuple[str, ...]
    files: frozenset[str]

    def weight_files(self, manifest: WeightsManifest) -> set[str]:
        """Return the names of the weight files; `ConfigurationError` for blocks that the model does not have."""
        ranges = [parse_block_range(text, manifest.num_blocks) for text in self.blocks]
        return set(self.files).union(*(stage_files(manifest, blocks) for blocks in ranges))


@click.command()
@click.argument("from", type=PathType())
@click.argument("to", type=PathType(path_type=Path, file_okay=False))
@click.option(
    "--blocks",
    multiple=True,
    metavar="START:STOP",
    help="Decoder layers of a stage, such as 12:24, or 12: for the rest, with embedding and head where the stage needs "
    "them. Again for another stage on this host.",
)
@click.option("--vision", is_flag=True, help="Vision tower.")
@click.option("--embeddings", is_flag=True, help="Token embedding, apart from blocks.")
@click.option("--head", is_flag=True, help="Output head, apart from blocks.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(ROLES),
    help="What this host runs: vision is as --vision, stage needs --blocks, conductor and gateway only small files.",
)
@click.option(
    "--parallel",
    "num_parallel",
    default=4,
    show_default=True,
    type=click.IntRange(1, 16),
    help="Files that come at the same time.",
)
def command(to: Path, blocks: tuple[str, ...], roles: tuple[str, ...], num_parallel: int, **options: Any) -> None:
    """Bring to TO what this host needs of the artifact at FROM, a directory or an http(s) URL.

    Small files always come along. Every byte is compared with the manifest. After an interruption the same command goes
    on where it stopped, also within a file where the server knows Range (nginx and caddy do); what is here already
    does not come again, so that more blocks can be added later.

    \b
    Exit codes: 0 all is here, 2 wrong usage, 69 FROM cannot be reached or lacks a file, 74 the disk is too small,
    78 FROM is damaged, 130 interrupted.

    \b
    Examples:
      broker-pipeline fetch --blocks 12:24 http://files.lan/qwen3-vl-8b /srv/qwen3-vl-8b
      broker-pipeline fetch --blocks 0:12 --vision /mnt/artifacts/8b /srv/8b
      broker-pipeline fetch --role conductor --role gateway http://files.lan/qwen3-vl-8b /srv/qwen3-vl-8b
    """
    source = options["from"]
    flags = {VISION_FILE: options["vision"], EMBED_FILE: options["embeddings"], HEAD_FILE: options["head"]}
    wanted = _wanted(blocks, flags, roles)
    _check_places(source, to)
    configure_logs("fetch", log_format="console")
    if asyncio.run(until_interrupted(_fetch(source, to, wanted, num_parallel))) is None:
        click.echo("stopped; what came is kept, the same command goes on from there", err=True)
        sys.exit(INTERRUPTED)


def _wanted(blocks: tuple[str, ...], flags: dict[str, bool], roles: Sequence[str]) -> Wanted:
    if "stage" in roles and not blocks:
        raise ConfigurationError("--role stage needs --blocks START:STOP, those that it is to serve", field="role")
    files = {name for name, is_wanted in flags.items() if is_wanted} | ({VISION_FILE} if "vision" in roles else set())
    if not (blocks or files or roles):
        raise ConfigurationError(
            "nothing is asked for: --blocks 12:24 for a stage, --vision, or --role conductor for the small files; "
            "--blocks 0: --vision is everything",
            field="blocks",
        )
    return Wanted(blocks, frozenset(files))


async def _fetch(source: str, target: Path, wanted: Wanted, num_parallel: int) -> bool:
    async with _opened(source) as opened:
        fetch = await Fetch.open(opened, target)
        files = wanted.weight_files(fetch.manifest)
        fetched = await fetch.run(files, make_console(stderr=True), num_parallel=num_parallel)
    kept = f"; {fetched.num_kept} files were there" if fetched.num_kept else ""
    click.echo(f"{target}: {fetched.num_files} files fetched, {decimal(fetched.num_bytes)}{kept}")
    click.echo(f"fingerprint {fetch.manifest.fingerprint}")
    for blocks in wanted.blocks:
        click.echo(f"start it: broker-pipeline stage --model {shlex.quote(str(target))} --blocks {blocks}")
    return True


def _check_places(source: str, target: Path) -> None:
    """Raise `ConfigurationError` where FROM is nothing, or the same as TO."""
    if "://" in source:
        return
    if not Path(source).is_dir():
        raise ConfigurationError(
            f"FROM: there is no directory {source}; a URL begins with http:// or https://", field="FROM"
        )
    if target.exists() and target.samefile(source):
        raise ConfigurationError("TO is the same directory as FROM", field="TO")


@asynccontextmanager
async def _opened(source: str) -> AsyncIterator[Source]:
    if "://" in source:
        async with HttpSource.opened(source) as opened:
            yield opened
    else:
        yield DirectorySource(Path(source))
