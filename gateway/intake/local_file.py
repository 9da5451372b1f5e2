"""Reads a `file:` URL: a picture or video below the one directory that the operator has opened for this.

Symbolic links are followed first, so that none leads out of the directory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from broker_pipeline.errors import MediaFetchError, MediaTooLargeError


def is_file_url(url: str) -> bool:
    """Say whether `url` names a file."""
    return url.lstrip()[:5].lower() == "file:"


def read_local_file(url: str, media_dir: str | None, *, max_bytes: int, field: str) -> bytes:
    """Return a file's bytes, at most `max_bytes`; may block as long as its file system does.

    Raises `MediaFetchError` or `MediaTooLargeError` naming the field.
    """
    if media_dir is None:
        raise MediaFetchError("file: URLs are read by a gateway that was started with --media-dir only", field=field)
    try:
        with os.fdopen(os.open(_real_path(url, Path(media_dir), field), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MediaFetchError("this is not a file", field=field)
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise MediaFetchError(f"the file cannot be read: {said}", field=field) from error
    if len(content) > max_bytes:
        raise MediaTooLargeError(f"the file has more than {max_bytes} bytes", field=field)
    return content


def _real_path(url: str, media_dir: Path, field: str) -> Path:
    parts = urlsplit(url.strip())
    if parts.netloc not in ("", "localhost"):
        raise MediaFetchError("a file: URL has three slashes, as in file:///pictures/a.jpg", field=field)
    path = Path(unquote(parts.path, errors="surrogateescape")).resolve()
    if not path.is_relative_to(media_dir.resolve(strict=True)):  # whatever is there or not, outside nobody is told
        raise MediaFetchError("the file is not below the directory that --media-dir names", field=field)
    return path
