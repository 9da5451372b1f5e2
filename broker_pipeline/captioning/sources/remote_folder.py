"""What a pattern of URLs, a folder behind a URL, or a data set of the Hugging Face hub holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from broker_pipeline.captioning.sources.location import WEB, ending_of, scheme_of
from broker_pipeline.captioning.sources.opening import file_system, need_package, reason_of
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.errors import ConfigurationError, PipelineError
from broker_pipeline.process.terminal import printable

_DATASET = re.compile(r"hf://(datasets/[^/@]+/[^/@]+)(/.*)?")
_PATTERN = re.compile(r"[*?\[]")


def is_pattern(url: str) -> bool:
    """Whether a URL stands for all that fit it; a question mark in one of the web is none."""
    return "*" in url if scheme_of(url) in WEB else bool(_PATTERN.search(url))


def pinned(url: str) -> str:
    """Return the URL of a data set of the hub with the commit that it is at now, where it names no revision."""
    found = _DATASET.fullmatch(url)
    if not found:
        return url
    hub = need_package("huggingface_hub", printable(url))
    try:
        info = hub.HfApi(library_name="broker-pipeline").dataset_info(found[1].removeprefix("datasets/"))
    except Exception as error:
        raise _unlisted(url, error) from error
    return f"hf://{found[1]}@{info.sha}{found[2] or ''}"


def urls_in(url: str, settings: SourceSettings, is_taken: Callable[[str], bool]) -> tuple[list[str], Counter[str]]:
    """Return the files below a URL, or that fit its pattern, sorted, and how many others were left out by ending.

    Raises `ConfigurationError` where they cannot be listed, or there are none.
    """
    files, path = file_system(url)
    try:
        listed = files.glob(path, detail=True) if is_pattern(url) else files.find(path, detail=True)
    except Exception as error:
        raise _unlisted(url, error) from error
    base = path.rstrip("/") + "/"
    left_out: Counter[str] = Counter()
    taken = []
    for name, facts in sorted(listed.items()):
        if facts["type"] != "file" or not settings.takes_name(name.removeprefix(base)):
            continue
        if not is_taken(name):
            left_out[ending_of(name)] += 1
        elif _fits(facts, settings):
            taken.append(files.unstrip_protocol(name))
    if not taken:
        raise ConfigurationError(f"{printable(url)} has no pictures, tars or tables", field="PATHS")
    return taken, left_out


def _fits(facts: dict[str, Any], settings: SourceSettings) -> bool:
    return facts.get("size") is None or settings.takes_size(facts["size"])


def _unlisted(url: str, error: Exception) -> PipelineError:
    if isinstance(error, PipelineError):
        return error
    return ConfigurationError(f"cannot list {printable(url)}: {reason_of(error)}", field="PATHS")
