"""Reads a `file:` URL: a picture or video below directories that an operator has opened for this.

Symbolic links are followed first, so that none leads out of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from broker_pipeline.errors import MediaFetchError, MediaTooLargeError


def is_file_url(url: str) -> bool:
    """Say whether `url` names a file."""
    return url.lstrip()[:5].lower() == "file:"


def read_local_file(
    url: str,
    folders: Sequence[str],
    flag: str,
    *,
    max_bytes: int,
    offset: int = 0,
    num_bytes: int = 0,
    field: str | None = None,
) -> bytes:
    """Return a file's bytes from `offset` on, `num_bytes` of them where that is not 0, at most `max_bytes`.

    May block as long as its file system does. `flag` is what names the folders.
    Raises `MediaFetchError` or `MediaTooLargeError` naming the field.
    """
    try:
        path = path_of(url, field).resolve()
        if not any(path.is_relative_to(Path(folder).resolve()) for folder in folders):
            # whatever is there or not, outside nobody is told
            raise MediaFetchError(f"the file is not below a directory that {flag} names", field=field)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise MediaFetchError("this is not a file", field=field)
            file.seek(offset)
            left = max(0, facts.st_size - offset) + 1  # what is asked for is allocated, whatever is there
            content = file.read(min(num_bytes or max_bytes + 1, left))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise MediaFetchError(f"the file cannot be read: {said}", field=field) from error
    if len(content) > max_bytes:
        raise MediaTooLargeError(f"the file has more than {max_bytes} bytes", field=field)
    return content


def path_of(url: str, field: str | None = None) -> Path:
    """Return the path that a `file:` URL means; raises `MediaFetchError` for one of another machine."""
    parts = urlsplit(url.strip())
    if parts.netloc not in ("", "localhost"):
        raise MediaFetchError("a file: URL has three slashes, as in file:///pictures/a.jpg", field=field)
    return Path(unquote(parts.path, errors="surrogateescape"))
