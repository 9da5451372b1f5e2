"""Opens files, of this machine and behind URLs, with the optional packages that it takes."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from aiohttp import ClientTimeout

from broker_pipeline.captioning.sources.location import WEB, scheme_of
from broker_pipeline.captioning.sources.reading import MAX_FILE_BYTES, check_size
from broker_pipeline.errors import ConfigurationError, MediaError, MediaFetchError, PipelineError, UnreadableFileError
from broker_pipeline.process.terminal import printable

_CONNECT_S = 30.0
_SILENCE_S = 60.0
_PICTURE_S = 120.0
_BUFFER_BYTES = 1 << 20


class _Unbuffered(io.RawIOBase):
    """A file of fsspec, whose reads may be short and which has no lines, as Python's own files take it."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def need_package(name: str, what: str) -> Any:
    """Return an optional package; raises `ConfigurationError` where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        extra = "hub" if name == "huggingface_hub" else "data"
        raise ConfigurationError(
            f"{what} needs {name.partition('.')[0]}: pip install 'broker-pipeline[{extra}]'", field="PATHS"
        ) from error


def file_system(url: str, *, total_s: float | None = None) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the URL's path in it; raises `ConfigurationError` where there is none.

    `total_s` bounds a whole answer of a web server; a silent one is given up in any case.
    """
    fsspec = need_package("fsspec", printable(url))
    try:
        scheme = scheme_of(url)
        if scheme in WEB:  # a `::` in one is no chain of file systems
            times = ClientTimeout(total=total_s, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
            return fsspec.filesystem(scheme, client_kwargs={"timeout": times}), url
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    except Exception as error:  # an unknown scheme, a package for it that is missing, credentials that are
        raise ConfigurationError(f"{printable(url)}: {reason_of(error)}", field="PATHS") from error


def open_stream(location: str, *, total_s: float | None = None) -> BinaryIO:
    """Return a file to read from its beginning to its end; raises whatever its file system does."""
    if not scheme_of(location):
        return Path(location).open("rb")
    files, path = file_system(location, total_s=total_s)
    # Of the web: one answer without asking for its size, from servers without ranges as well.
    is_web = scheme_of(location) in WEB
    file = files.open(path, block_size=0, size=1) if is_web else files.open(path)
    return cast("BinaryIO", io.BufferedReader(_Unbuffered(file), _BUFFER_BYTES))


def open_seekable(url: str) -> BinaryIO:
    """Return a URL's file to read anywhere; raises whatever its file system does."""
    files, path = file_system(url)
    return cast("BinaryIO", files.open(path))


def fetch(url: str) -> bytes:
    """Return what is behind a URL. Raises `MediaFetchError` or `MediaTooLargeError`."""
    try:
        with open_stream(url, total_s=_PICTURE_S) as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except ConfigurationError as error:
        raise MediaFetchError(error.message) from error
    except Exception as error:
        raise media_error(url, error) from error
    check_size(len(content))
    return content


def media_error(location: str, error: Exception) -> MediaError:
    """Return the error of a file that could not be read, which names it; `error` itself where it is one already.

    Raises `error` where it is about more than this file.
    """
    if isinstance(error, MediaError):
        return error
    if isinstance(error, PipelineError):
        raise error
    text = f"{printable(location)}: {reason_of(error)}"
    if scheme_of(location):
        return MediaFetchError(text, retryable=_may_pass(error))
    return UnreadableFileError(text)


def reason_of(error: Exception) -> str:
    """Return what went wrong, in words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status >= 500 or status in {408, 429}
    return not isinstance(error, FileNotFoundError | PermissionError)
