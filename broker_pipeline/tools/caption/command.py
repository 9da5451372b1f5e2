"""The command `broker-pipeline caption`."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from broker_pipeline.captioning.asked_model import asked_model
from broker_pipeline.captioning.line_maker import LineMaker
from broker_pipeline.captioning.log import CaptionLog
from broker_pipeline.captioning.run import CaptionRun, Summary
from broker_pipeline.captioning.sources.picture_files import FoundPictures, find_pictures
from broker_pipeline.client.calls import DEFAULT_PATIENCE_S
from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.config import PathType, flag_of, option
from broker_pipeline.daemon_thread import in_daemon_thread
from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.exit_codes import INTERRUPTED, OK, SOME_FAILED
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.pictures.formats import ENDINGS
from broker_pipeline.terminal import make_console
from broker_pipeline.tools.caption.progress import CaptionProgress, print_summary, say
from broker_pipeline.tools.caption.sampling_options import sampling_options, sampling_params
from broker_pipeline.tools.gateway_options import gateway_options
from broker_pipeline.tools.signals import until_interrupted


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """What a run is told."""

    paths: tuple[Path, ...]
    recursive: bool
    gateway: str
    key: str | None
    out: Path
    request: CaptionRequest
    num_in_flight: int
    patience_s: float
    fail_fast: bool


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PathType(path_type=Path))
@gateway_options
@option("--prompt", default=None, help="What to ask about each picture; the gateway asks for a description.")
@option(
    "--out", default="captions.jsonl", type=PathType(path_type=Path), help="File to append to; - for standard output."
)
@option("--concurrency", default=64, type=click.IntRange(1, 4096), help="Pictures under way at the same time.")
@sampling_options
@option("--recursive/--no-recursive", default=True, help="Look into folders inside folders.")
@option("--again", is_flag=True, help="Ask anew about every picture, captioned or not.")
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
    with a caption of this model for the same content, prompt and parameters are skipped, failed ones are tried again.

    \b
    Exit codes: 0 all captioned, 1 some failed, 2 wrong usage, 69 no gateway, 74 the output cannot be written,
    130 interrupted.

    \b
    Examples:
      broker-pipeline caption holiday/ --out holiday.jsonl
      broker-pipeline caption *.jpg --prompt 'List the objects in this picture.' --max-tokens 100 --temperature 0
      broker-pipeline caption photo.jpg --out - | jq -r .caption
    """
    settings = _settings(paths, options)
    sys.exit(asyncio.run(_run(settings)))


def _settings(paths: tuple[Path, ...], options: dict[str, Any]) -> CaptionSettings:
    prompt = options["prompt"]
    if prompt is not None and not prompt.strip():
        raise InvalidRequestError("--prompt is empty; leave it out for the default", field="prompt")
    for name, given in options.items():
        for text in (given,) if isinstance(given, str) else given if isinstance(given, tuple) else ():
            if isinstance(text, str) and not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
                raise InvalidRequestError(f"{flag_of(name)} is not UTF-8", field=name)
    return CaptionSettings(
        paths=paths,
        recursive=options["recursive"],
        gateway=options["gateway"],
        key=options["key"],
        out=options["out"],
        request=CaptionRequest(prompt, sampling_params(options), occasion=uuid.uuid4().hex if options["again"] else ""),
        num_in_flight=options["concurrency"],
        patience_s=options["patience_s"],
        fail_fast=options["fail_fast"],
    )


async def _run(settings: CaptionSettings) -> int:
    console = make_console(stderr=True)
    summary = await until_interrupted(_caption(settings, console))
    if summary is None:
        say(console, "Run the same command again to go on where this stopped.")
        return INTERRUPTED
    return SOME_FAILED if summary.failed else OK


async def _caption(settings: CaptionSettings, console: Console) -> Summary:
    found = await in_daemon_thread(find_pictures, settings.paths, recursive=settings.recursive)
    if not found.pictures and not found.unreadable:
        left_out = f"; {found.left_out_text()}" if found.left_out else ""
        raise InvalidRequestError(
            f"no pictures there; looked for {', '.join(sorted(ENDINGS))}{left_out}", field="PATHS"
        )
    async with GatewayClient.open(settings.gateway, patience_s=settings.patience_s, key=settings.key) as client:
        await client.check()
        conductor = await asked_model(client, settings.patience_s, lambda text: say(console, text))
        with CaptionLog(settings.out) as log:
            _announce(console, settings, found, conductor, log)
            progress = CaptionProgress(console, len(found.pictures) + len(found.unreadable))
            lines = LineMaker(replace(settings.request, model=conductor.fingerprint), conductor.model or None)
            run = CaptionRun(
                client, log, lines, progress, num_in_flight=settings.num_in_flight, fail_fast=settings.fail_fast
            )
            started = time.monotonic()
            try:
                with progress.shown():
                    return await run.run(found)
            finally:
                print_summary(console, run.summary, log.name, time.monotonic() - started)
                _say_left_out(console, found)


def _announce(
    console: Console, settings: CaptionSettings, found: FoundPictures, conductor: ConductorStatus, log: CaptionLog
) -> None:
    if log.num_torn_bytes:
        say(console, f"cut off a torn line of {log.name} ({log.num_torn_bytes} bytes)")
    if found.num_repeated:
        say(console, f"{found.num_repeated} paths lead to pictures that other paths lead to as well")
    if log.num_without_model and not settings.request.occasion:
        say(
            console,
            f"{log.num_without_model} captions in {log.name} name no model and count for any; --again asks anew",
        )
    known = f"; {log.name} has {log.num_captioned} captions already" if log.num_captioned else ""
    asked = f"{conductor.model} at {settings.gateway}".removeprefix(" at ")
    say(console, f"{len(found.pictures)} pictures for {asked}{known}")
    _say_left_out(console, found)


def _say_left_out(console: Console, found: FoundPictures) -> None:
    if found.left_out:
        say(console, found.left_out_text())
