"""The command `broker-pipeline caption`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from broker_pipeline.captioning.run import RunSettings
from broker_pipeline.captioning.sources.location import scheme_of
from broker_pipeline.client.calls import DEFAULT_PATIENCE_S
from broker_pipeline.config import PathType, option
from broker_pipeline.exit_codes import INTERRUPTED, OK, SOME_FAILED
from broker_pipeline.process.terminal import make_console
from broker_pipeline.tools.caption.data_options import data_options
from broker_pipeline.tools.caption.data_settings import check_texts, check_together
from broker_pipeline.tools.caption.progress import say
from broker_pipeline.tools.caption.recipe import load_recipe
from broker_pipeline.tools.caption.sampling_options import sampling_options
from broker_pipeline.tools.caption.session import CaptionSession, SessionSettings
from broker_pipeline.tools.gateway_options import gateway_options
from broker_pipeline.tools.signals import until_interrupted

_SAMPLE = 100


class _CaptionCommand(click.Command):
    """`caption verify OUT --sample NUM` is `caption --recipe OUT.recipe.toml --verify NUM`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line."""
        if "verify" in args and not Path("verify").exists():
            at = args.index("verify")
            out = "".join(args[at + 1 : at + 2])
            if not out or out.startswith("-"):
                raise click.UsageError("verify which? `broker-pipeline caption verify OUT --sample 100`", ctx)
            more = ["--verify" if arg == "--sample" else arg for arg in args[:at] + args[at + 2 :]]
            args = ["--recipe", f"{out}.recipe.toml", "--verify", str(_SAMPLE), *more]
        return super().parse_args(ctx, args)


@click.command(cls=_CaptionCommand)
@click.argument("paths", nargs=-1, type=PathType(path_type=str))  # a Path would make http:/ of http://
@click.option(
    "--recipe",
    type=PathType(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=load_recipe,
    help="TOML file with values for these flags, by their names with _ for -.",
)
@gateway_options
@option(
    "--out", default="captions.jsonl", type=PathType(path_type=Path), help="Log to append to; - for standard output."
)
@option("--concurrency", default=64, type=click.IntRange(1, 4096), help="Items under way at the same time.")
@data_options
@sampling_options
@option("--priority", default="batch", type=click.Choice(("batch", "interactive")), help="Of the jobs in the queue.")
@option("--again", is_flag=True, help="Ask anew about every item, captioned or not.")
@option("--only-failed", is_flag=True, help="Ask about those alone that failed before.")
@option("--fail-fast/--no-fail-fast", default=False, help="Stop at the first item that fails.")
@option("--dry-run", is_flag=True, help="Show what would be asked of how many, and how long it would take.")
@option("--verify", default=None, type=click.IntRange(min=1), metavar="NUM", help="Ask again about so many items "
        "that have captions, with their seeds, and compare; for pipelines that run with --deterministic.")  # fmt: skip
@option(
    "--patience-s",
    default=DEFAULT_PATIENCE_S,
    type=click.FloatRange(min=0),
    help="Seconds to go on trying while the gateway does not answer.",
)
def command(paths: tuple[str, ...], **options: Any) -> None:
    """Caption the pictures in PATHS.

    PATHS are pictures, folders, webdataset tars, parquet, arrow, csv and jsonl tables, lists of paths or URLs (.txt),
    data sets of Hugging Face (a folder, or hf://datasets/ORG/NAME@REVISION), and URLs of any of these.

    Writes one JSON line per item to --out as it finishes, and what --to, --sidecar and --report name in the order of
    the source. Run the same command again after an interruption: what has its caption of this model for the same
    content, prompt and parameters is not asked again, what failed is. OUT.recipe.toml says what the run was told.

    \b
    Exit codes: 0 all captioned, 1 some failed (--verify: some differ), 2 wrong usage, 69 no gateway, 74 the output
    cannot be written, 130 interrupted.

    \b
    Examples:
      broker-pipeline caption holiday/ --out holiday.jsonl
      broker-pipeline caption photos/ --sidecar .txt --preset tags --trigger ohwx
      broker-pipeline caption photos/ --to photos/metadata.jsonl --text-column text --report report.html
      broker-pipeline caption 'shards/a.tar' --to 'captioned/a-%05d.tar' --preset detailed --clean
      broker-pipeline caption table.parquet --prompt 'Describe this {{ category }}.' --to captions/
      broker-pipeline caption photo.jpg --out - | jq -r .caption
      broker-pipeline caption verify captions.jsonl --sample 100
    """
    check_texts(options)
    check_together(options)
    session = CaptionSession(
        SessionSettings(
            paths=tuple(path if scheme_of(path) else str(Path(path)) for path in paths),
            gateway=options["gateway"],
            key=options["key"],
            out=options["out"],
            patience_s=options["patience_s"],
            limit=options["limit"],
            only_failed=options["only_failed"],
            run=RunSettings(options["concurrency"], options["fail_fast"], 1 if options["watch"] else 64),
        ),
        options,
        make_console(stderr=True),
    )
    with closing(session):
        sys.exit(asyncio.run(_run(session, options)))


async def _run(session: CaptionSession, options: dict[str, Any]) -> int:
    if options["dry_run"]:
        work = session.dry_run()
    elif options["verify"] is not None:
        work = session.verify(options["verify"])
    else:
        work = session.caption()
    is_well = await until_interrupted(work)
    if is_well is None:
        say(make_console(stderr=True), "Run the same command again to go on where this stopped.")
        return INTERRUPTED
    return OK if is_well else SOME_FAILED
