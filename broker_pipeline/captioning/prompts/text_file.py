"""A small file of text: a prompt, a caption, tags."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.process.terminal import printable

MAX_BYTES = 256 * 1024
_OPENING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def read_text(path: Path) -> str | None:
    """Return the text without white space around it; None where there is no such file.

    Raises `InvalidRequestError`, which names the file. A named pipe is not waited at.
    """
    try:
        with open(os.open(path, _OPENING), "rb") as file:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _refused(path, "not a regular file")
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    if len(content) > MAX_BYTES:
        raise _refused(path, f"more than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _refused(path, f"not UTF-8 at byte {error.start}") from error


def _refused(path: Path, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"cannot read {printable(path)}: {reason}", field="prompt")
