"""Where a file is, as a text: a path of this machine, or a URL."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from broker_pipeline.errors import UnreadableFileError
from broker_pipeline.process.terminal import printable

WEB = frozenset({"http", "https"})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(location: str) -> str:
    """Return `https` of `https://…`, and nothing of a path."""
    found = _SCHEME.match(location)
    return found[1].lower() if found else ""


def local_path(location: str) -> str | None:
    """Return the path of this machine that a path or `file:` URL means; None for other URLs."""
    if not (scheme := scheme_of(location)):
        return location
    if scheme != "file":
        return None
    path = location[len("file://") :]
    return path if os.path.lexists(path) else unquote(path)  # fsspec's own URLs are not quoted


def file_name(location: str) -> str:
    """Return the last part in lower case: of `https://host/a/B.tar?download=1` it is `b.tar`."""
    path = urlsplit(location).path if scheme_of(location) in WEB else location
    return path.rpartition("/")[2].lower()


def ending_of(location: str) -> str:
    """Return the ending in lower case, with its dot; nothing where there is none."""
    return os.path.splitext(file_name(location))[1]  # noqa: PTH122 - it may be a URL


def named_in(table: str, text: str) -> str:
    """Return the location that a table or list means by `text`: relative ones are beside it.

    A table of this machine may name whatever its user may read. One from elsewhere may name URLs, and what is below
    its own folder: raises `UnreadableFileError` for anything else, above all for files of this machine.
    """
    scheme, own = scheme_of(text), scheme_of(table)
    if not own:
        return text if scheme else os.path.join(os.path.dirname(table), text)  # noqa: PTH118, PTH120 - keeps ./ and ..
    if scheme in WEB or (scheme == own and "::" not in text):
        return text
    if scheme or text.startswith("/") or "\\" in text or "::" in text or ".." in text.split("/"):
        raise UnreadableFileError(f"{printable(text)} is not below the folder of the table, which came from elsewhere")
    folder = table.partition("?")[0].rpartition("/")[0]
    return f"{folder}/{text}"
