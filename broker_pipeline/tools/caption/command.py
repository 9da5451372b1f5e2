"""The command `broker-pipeline caption`."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from broker_pipeline.client.calls import DEFAULT_GATEWAY_URL, DEFAULT_PATIENCE_S
from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.config import option
from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.exit_codes import INTERRUPTED, OK, SOME_FAILED
from broker_pipeline.tools.caption.log import CaptionLog
from broker_pipeline.tools.caption.picture_files import EXTENSIONS, find_pictures
from broker_pipeline.tools.caption.progress import CaptionProgress, print_summary
from broker_pipeline.tools.caption.run import CaptionRun, Summary
from broker_pipeline.tools.caption.sampling_options import sampling_options, sampling_params
from broker_pipeline.tools.signals import until_interrupted


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """What a run is told."""

    pictures: list[Path]
    gateway: str
    out: Path
    request: CaptionRequest
    num_in_flight: int
    patience_s: float
    fail_fast: bool


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--gateway", default=DEFAULT_GATEWAY_URL, metavar="URL", help="Gateway to send the pictures to.")
@option("--prompt", default=None, help="What to ask about each picture; the gateway asks for a description.")
@option("--out", default="captions.jsonl", type=click.Path(dir_okay=False, path_type=Path), help="File to append to.")
@option("--concurrency", default=64, type=click.IntRange(1, 4096), help="Pictures under way at the same time.")
@sampling_options
@option("--recursive/--no-recursive", default=True, help="Look into folders inside folders.")
@option("--fail-fast/--no-fail-fast", default=False, help="Stop at the first picture that fails.")
@option(
    "--patience-s",
    default=DEFAULT_PATIENCE_S,
    type=click.FloatRange(min=0),
    help="Seconds to go on trying while the gateway does not answer.",
)
def command(paths: tuple[Path, ...], **options: Any) -> None:
    """Caption the pictures in PATHS (files, and folders full of them).

    Writes one JSON line per picture to --out as it finishes. Run the same command again after an interruption: pictures
    with a caption for the same content, prompt and parameters are skipped, failed ones are tried again.

    \b
    Exit codes: 0 all captioned, 1 some failed, 2 wrong usage, 69 no gateway, 130 interrupted.

    \b
    Examples:
      broker-pipeline caption holiday/ --out holiday.jsonl
      broker-pipeline caption *.jpg --prompt 'List the objects in this picture.' --max-tokens 100 --temperature 0
    """
    settings = _settings(paths, options)
    sys.exit(asyncio.run(_run(settings)))


def _settings(paths: tuple[Path, ...], options: dict[str, Any]) -> CaptionSettings:
    prompt = options["prompt"]
    if prompt is not None and not prompt.strip():
        raise InvalidRequestError("--prompt is empty; leave it out for the default", field="prompt")
    pictures = find_pictures(paths, recursive=options["recursive"])
    if not pictures:
        raise InvalidRequestError(f"no pictures there; looked for {', '.join(sorted(EXTENSIONS))}", field="PATHS")
    return CaptionSettings(
        pictures=pictures,
        gateway=options["gateway"],
        out=options["out"],
        request=CaptionRequest(prompt, sampling_params(options)),
        num_in_flight=options["concurrency"],
        patience_s=options["patience_s"],
        fail_fast=options["fail_fast"],
    )


async def _run(settings: CaptionSettings) -> int:
    console = Console(stderr=True)
    async with GatewayClient.open(settings.gateway, patience_s=settings.patience_s) as client:
        await client.check()
        with CaptionLog(settings.out) as log:
            _announce(console, settings, log)
            progress = CaptionProgress(console, len(settings.pictures))
            run = CaptionRun(
                client,
                log,
                settings.request,
                progress,
                num_in_flight=settings.num_in_flight,
                fail_fast=settings.fail_fast,
            )
            started = time.monotonic()
            try:
                with progress.shown():
                    is_whole = await until_interrupted(run.run(settings.pictures)) is not None
            finally:
                print_summary(console, run.summary, str(settings.out), time.monotonic() - started)
    return _exit_code(console, run.summary, is_whole)


def _announce(console: Console, settings: CaptionSettings, log: CaptionLog) -> None:
    if log.num_torn_bytes:
        console.print(f"cut off a torn last line of {settings.out} ({log.num_torn_bytes} bytes)", highlight=False)
    known = f"; {settings.out} has {log.num_captioned} captions already" if log.num_captioned else ""
    console.print(f"{len(settings.pictures)} pictures for {settings.gateway}{known}", highlight=False, soft_wrap=True)


def _exit_code(console: Console, summary: Summary, is_whole: bool) -> int:
    if not is_whole:
        if summary.num_left_running:
            console.print(f"{summary.num_left_running} jobs that were accepted keep running.", highlight=False)
        console.print("Run the same command again to go on where this stopped.", highlight=False)
        return INTERRUPTED
    return SOME_FAILED if summary.failed else OK
