"""From the flags of `caption` to what a run is made of."""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from broker_pipeline.captioning.answers import AnswerRules
from broker_pipeline.captioning.guards.cleaning import clean
from broker_pipeline.captioning.guards.guard import Guard
from broker_pipeline.captioning.guards.settings import DEFAULT_RULES, GuardSettings
from broker_pipeline.captioning.item_run import Prompting
from broker_pipeline.captioning.prompts.nearby import Nearby
from broker_pipeline.captioning.prompts.parse import PromptFlags, questions_of, read_prompt_file
from broker_pipeline.captioning.prompts.template import NEARBY_NAMES
from broker_pipeline.captioning.report.sink import ReportSink
from broker_pipeline.captioning.sinks.record import check_columns
from broker_pipeline.captioning.sinks.row import Sink
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.sidecars import Sidecars
from broker_pipeline.captioning.sinks.target import open_sink
from broker_pipeline.captioning.sources.item import Source
from broker_pipeline.captioning.sources.open import open_sources
from broker_pipeline.captioning.sources.path_list import ListSource, files_from
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.captioning.watching import Watching
from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.visual_params import VisualParams
from broker_pipeline.config import flag_of, parse_settings
from broker_pipeline.errors import ConfigurationError, InvalidRequestError
from broker_pipeline.process.terminal import printable
from broker_pipeline.tools.caption.apart import check_apart
from broker_pipeline.tools.caption.sampling_options import sampling_params

Options = dict[str, Any]

_NEEDS = {
    "null": ("files_from",),
    "sidecar_dir": ("sidecar",),
    "trigger": ("to", "sidecar"),
    "text_column": ("to",),
    "keep_failed": ("to",),
}
"""Flags, each with those of which one has to be there."""


def check_texts(options: Options) -> None:
    """Raise `InvalidRequestError` for a text that is empty where one is needed, or no UTF-8."""
    for name in ("prompt", "system"):
        for text in options[name] if isinstance(options[name], tuple) else (options[name],):
            if text is not None and not text.strip():
                raise InvalidRequestError(f"--{name} is empty; leave it out for the default", field=name)
    for name, given in options.items():
        for text in (given,) if isinstance(given, str) else given if isinstance(given, tuple) else ():
            if isinstance(text, str) and not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
                raise InvalidRequestError(f"{flag_of(name)} is not UTF-8", field=name)


def check_together(options: Options) -> None:
    """Raise `ConfigurationError` for a flag that means nothing beside the others, or without one."""
    for name, others in _NEEDS.items():
        if options[name] and not any(options[other] for other in others):
            needed = " or ".join(map(flag_of, others))
            raise ConfigurationError(f"{flag_of(name)} does nothing without {needed}", field=name)
    if options["only_failed"] and options["again"]:
        raise ConfigurationError("--only-failed leaves out what --again asks about: take one", field="only_failed")


def source_of(typed: Sequence[str], paths: Sequence[str], options: Options, closing: ExitStack) -> Source:
    """Return the source of `paths`, for which the `typed` ones stand, and --files-from; `closing` closes the list."""
    settings = parse_settings(SourceSettings, {name: options[name] for name in _SOURCE_FIELDS})
    listed = options["files_from"]
    if not paths and listed is None:
        raise ConfigurationError("give PATHS, or --files-from with a list of them", field="PATHS")
    if options["watch"] and (listed is not None or not all(Path(path).is_dir() for path in paths)):
        raise ConfigurationError("--watch looks at folders: give nothing else as PATHS", field="watch")
    lists = [_list(listed, options, closing)] if listed is not None else []
    source = open_sources(paths, settings, lists=lists)
    return Watching(lambda: open_sources(typed, settings)) if options["watch"] else source


def _list(path: Path, options: Options, closing: ExitStack) -> ListSource:
    stream = sys.stdin.buffer if str(path) == "-" else closing.enter_context(_opened(path))
    return files_from(stream, is_nul_separated=options["null"], name=printable(path))


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigurationError(f"--files-from {printable(path)}: {error.strerror}", field="files_from") from error


def prompting_of(paths: Sequence[str], options: Options) -> Prompting:
    """Return what is asked about each item, without the model that is asked."""
    flags = PromptFlags(
        prompts=options["prompt"],
        prompt_files=tuple(read_prompt_file(path) for path in options["prompt_file"]),
        preset=options["preset"],
        asks=options["ask"],
        system=options["system"],
        folder_prompts=options["folder_prompts"],
    )
    questions = questions_of(flags)
    folders = frozenset(path if path.is_dir() else path.parent for path in map(Path, paths))
    roots = folders if flags.folder_prompts else None
    names = questions.names if questions else frozenset()
    nearby = Nearby(names, roots) if roots is not None or names & NEARBY_NAMES else None
    occasion = uuid.uuid4().hex if options["again"] else ""
    visual = parse_settings(VisualParams, {name: options[name] for name in VisualParams.__struct_fields__})
    base = CaptionRequest(
        None, sampling_params(options), occasion=occasion, priority=options["priority"], visual=visual
    )
    return Prompting(base, questions, nearby, options["prompt_seed"])


def rules_of(options: Options) -> AnswerRules:
    """Return what is done with answers."""
    guard = GuardSettings(
        rules=(options["guard"] or DEFAULT_RULES) if options["guards"] else (),
        script=options["script"],
        language=options["language"],
        min_words=options["min_words"] or 0,
        max_words=options["max_words"],
        json_schema=_schema(options["json_schema"]),
        forbidden=options["forbid"],
        required=options["require"],
        num_retries=options["guard_retries"],
        last=options["on_guard"],
        retry_temperature=options["retry_temperature"],
    )
    return AnswerRules(Guard(guard), clean if options["clean"] else None)


def _schema(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"--json-schema {printable(path)}: {reason}", field="json_schema") from error


def sinks_of(typed: Sequence[str], paths: Sequence[str], questions: Sequence[str], options: Options) -> list[Sink]:
    """Return where rows go besides the log; raises `ConfigurationError` for what could not be written in the end."""
    others = check_apart(typed, paths, options)
    settings = SinkSettings(
        text_column=options["text_column"],
        shard_rows=options["shard_rows"],
        trigger=options["trigger"],
        keep_failed=options["keep_failed"],
    )
    if options["watch"] and (options["to"] or options["report"]):
        raise ConfigurationError("--watch never comes to an end that --to and --report could be written at; --sidecar "
                                 "and --out go with it", field="watch")  # fmt: skip
    if options["to"]:
        check_columns(questions, settings)
    sinks: list[Sink] = [open_sink(target, settings) for target in options["to"]]
    if options["sidecar"] is not None:
        _check_sidecar(options)
        roots = [path for path in map(Path, paths) if path.is_dir()]
        where = options["sidecar"], options["sidecar_dir"], options["sidecar_mode"]
        sinks.append(Sidecars(*where, settings, roots, others))
    if options["report"] is not None:
        sinks.append(ReportSink(options["report"], f"Captions of {', '.join(map(printable, typed))}"))
    return sinks


def _check_sidecar(options: Options) -> None:
    """Raise `ConfigurationError` where the next run would take this one's captions for what was there before."""
    texts = " ".join((*options["prompt"], *options["ask"], options["system"] or ""))
    is_read = options["sidecar"].strip(".") in {"txt", "caption", "tags"} and options["sidecar_dir"] is None
    if is_read and re.search(r"\{[{%][^}]*\b(tags|caption)\b", texts) and not options["ask"]:
        raise ConfigurationError(
            "--sidecar would write over what `tags` and `caption` in the prompt read: take another ending, or "
            "--sidecar-dir",
            field="sidecar",
        )


_SOURCE_FIELDS = (
    *("recursive", "include", "exclude", "min_bytes", "max_bytes", "newer_than_s", "older_than_s"),
    *("shuffle", "image_column", "videos"),
)
