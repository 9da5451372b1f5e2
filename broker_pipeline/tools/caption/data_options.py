"""The flags of `broker-pipeline caption` about sources, prompts, guards and sinks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from broker_pipeline.captioning.guards.settings import SWITCHES
from broker_pipeline.captioning.prompts.presets import presets
from broker_pipeline.captioning.sinks.sidecars import Mode
from broker_pipeline.config import PathType, add_options, option

F = TypeVar("F", bound=Callable[..., Any])
_PATH = PathType(path_type=Path)
_NUMBER = click.IntRange(min=0)
_POSITIVE = click.IntRange(min=1)

_SOURCES = (
    option(
        "--files-from", default=None, type=_PATH, help="File with a path or URL on each line; - for standard input."
    ),
    option("-0", "--null", "null", is_flag=True, help="NUL ends an entry of --files-from, as `find -print0` has it."),
    option("--recursive/--no-recursive", default=True, help="Look into folders inside folders."),
    option("--include", multiple=True, metavar="GLOB", help="Only files that match, by path or name. May be repeated."),
    option("--exclude", multiple=True, metavar="GLOB", help="No files that match. May be repeated."),
    option("--min-bytes", default=None, type=_NUMBER, help="No smaller files."),
    option("--max-bytes", default=None, type=_NUMBER, help="No larger files."),
    option("--newer-than-s", default=None, type=click.FloatRange(min=0), help="Only files changed in so many seconds."),
    option("--older-than-s", default=None, type=click.FloatRange(min=0), help="Only files unchanged for so long."),
    option("--shuffle", default=None, type=int, metavar="SEED", help="In an order drawn by this seed."),
    option("--videos", is_flag=True, help="Take videos in folders as well."),
    option("--image-column", default=None, help="Column of a table with the picture, its path or URL."),
    option("--limit", default=None, type=_POSITIVE, help="Only the first so many items."),
    option(
        "--by-reference",
        is_flag=True,
        help="Say where pictures are in place of sending them: gateway and vision "
        "workers have the folders too, at the same paths, and were told so with --media-roots.",
    ),
    option("--watch", is_flag=True, help="Go on with what comes into the folders, until interrupted."),
)
_SEEN = (
    option("--min-pixels", default=None, type=_POSITIVE, help="Each picture is resized to at least so many pixels."),
    option("--max-pixels", default=None, type=_POSITIVE, help="And to no more: fewer are quicker, and show less."),
    option("--fps", default=None, type=float, help="Frames of a video's second that are seen.  [default: 2]"),
    option("--max-frames", default=None, type=_POSITIVE, help="Frames of a whole video, evenly over its time."),
)
_PROMPTS = (
    option("--prompt", multiple=True, help="What to ask; the gateway asks for a description. A Jinja template, with "
           "`name`, `folder`, `tags`, `caption` and columns. Repeated: alternatives, `weight=3: TEXT`."),
    option("--prompt-file", multiple=True, type=_PATH, help="File with the prompt; lines of --- between alternatives."),
    option("--preset", default=None, type=click.Choice(tuple(presets())), help="A prompt that comes with the package."),
    option("--ask", multiple=True, metavar="NAME=TEXT", help="A further question, whose template may use the answers "
           "before it by name. May be repeated."),
    option("--system", default=None, help="What the model is told before the prompt."),
    option("--folder-prompts", is_flag=True, help="Ask what prompt.txt says in the item's folder or one above."),
    option("--prompt-seed", default=0, type=int, help="Chooses among alternatives."),
)  # fmt: skip
_GUARDS = (
    option("--guard", multiple=True, type=click.Choice(SWITCHES),
           help="Look for this in captions. May be repeated.  [default: empty, punctuation, refusal, loop]"),
    option("--guards/--no-guards", default=True, help="Look at captions at all."),
    option("--script", default=None, metavar="NAME", help="Most letters have to be of this script: latin, cjk, …"),
    option("--language", default=None, metavar="CODE", help="Captions have to be in it: en, de, zh, …"),
    option("--min-words", default=None, type=_NUMBER, help="No shorter captions."),
    option("--max-words", default=None, type=_NUMBER, help="No longer ones."),
    option("--forbid", multiple=True, metavar="WORD", help="No captions with this. May be repeated."),
    option("--require", multiple=True, metavar="WORD", help="Only captions with this. May be repeated."),
    option("--json-schema", default=None, type=_PATH, help="What captions, as JSON, have to match."),
    option("--guard-retries", default=2, type=_NUMBER, help="Tries with another seed where something is wrong."),
    option("--retry-temperature", default=0.7, type=click.FloatRange(0, 2, min_open=True), help="Then, if 0 before."),
    option("--on-guard", default="mark", type=click.Choice(("mark", "drop", "fail")),
           help="What becomes of a caption that stays wrong: kept with the reason, left out, or failed."),
    option("--clean/--no-clean", default=False, help="Cut off `The image shows` and its like, quotes, markdown."),
)  # fmt: skip
_SINKS = (
    option("--to", multiple=True, metavar="TARGET", help="Also write FOLDER/metadata.jsonl or .parquet (ImageFolder), "
           "a .jsonl, .csv or .parquet file, shards NAME-%05d.tar or .parquet, or FOLDER/ (a data set of the hub). May "
           "be repeated."),
    option("--sidecar", default=None, metavar="ENDING", help="Also write each caption beside its picture: .txt"),
    option("--sidecar-dir", default=None, type=_PATH, help="In this folder instead, with the same folders in it."),
    option("--sidecar-mode", default="skip", type=click.Choice(get_args(Mode)),
           help="Where there is one already; `missing` does not even ask about such pictures."),
    option("--trigger", default="", metavar="WORD", help="Stands before captions in --to and --sidecar."),
    option("--text-column", default=None, help="What captions are called in tables.  [default: caption]"),
    option("--shard-rows", default=1000, type=_POSITIVE, help="Items of each shard."),
    option("--keep-failed", is_flag=True, help="Rows without captions as well, with the reason."),
    option("--report", default=None, type=_PATH, help="Write a page with samples, lengths and failures."),
)  # fmt: skip
DATA_OPTIONS = (*_SOURCES, *_SEEN, *_PROMPTS, *_GUARDS, *_SINKS)


def data_options(function: F) -> F:
    """Add the flags to a command."""
    return add_options(function, DATA_OPTIONS)
