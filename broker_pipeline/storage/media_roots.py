"""Media that stay where they are: named by URL and hash, read by vision workers below roots that they were told.

    file:///pictures/a.jpg#sha256=HEX
    file:///pictures/a.tar#sha256=HEX&offset=1536&length=20480      a part of a file
    s3://bucket/a.jpg#sha256=HEX                                    through fsspec

Neither a gateway nor NATS has their bytes. The hash proves them: what has changed since fails its job.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from broker_pipeline.captioning.sources.opening import file_system, media_error, open_stream
from broker_pipeline.errors import ConfigurationError, MediaFetchError, MediaTooLargeError
from broker_pipeline.messages.jobs import MediaRef
from broker_pipeline.storage.local_file import is_file_url, path_of, read_local_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,15}")
_FLAG = "--media-roots"
_MAX_URL = 4096
_NO_MAXIMUM = 2**62


class MediaRoots:
    """The folders, here and behind URLs, that media may be read below."""

    def __init__(self, roots: Sequence[str] = (), max_bytes: int = _NO_MAXIMUM) -> None:
        """Read up to `max_bytes` of one file or part. `roots` are directories and URLs of folders."""
        self._folders = tuple(Path(os.path.normpath(root)) for root in roots if "://" not in root)
        self._urls = tuple(f"{root.rstrip('/')}/" for root in roots if "://" in root)
        self._max_bytes = max_bytes

    def check(self) -> None:
        """Raise `ConfigurationError` where one of the folders is not on this machine."""
        for folder in self._folders:
            if not (folder.is_absolute() and folder.is_dir()):
                raise ConfigurationError(f"{_FLAG}: {folder} is not a directory here", field="media_roots")

    def reference(self, url: str, field: str) -> MediaRef | None:
        """Return what a URL with a hash refers to; None for one without, or not below a root. Reads nothing.

        Raises `MediaFetchError` naming `field` where the facts behind its `#` are wrong.
        """
        place, _, fragment = url.strip().partition("#")
        facts = dict(parse_qsl(fragment)) if fragment.startswith(("sha256=", "offset=", "length=")) else {}
        if not facts or not self._holds(place, field):
            if facts.keys() & {"offset", "length"}:
                raise MediaFetchError(f"parts of files are read below what {_FLAG} names, only", field=field)
            return None
        sha256, offset, length = _checked(facts, field)
        if length > self._max_bytes:
            raise MediaTooLargeError(f"the file has more than {self._max_bytes} bytes", field=field)
        if len(place) > _MAX_URL:
            raise MediaFetchError(f"the URL is longer than {_MAX_URL} characters", field=field)
        return MediaRef(sha256=sha256, num_bytes=length, url=place, offset=offset)

    def read(self, ref: MediaRef) -> bytes:
        """Return the bytes of a reference. Blocks.

        Raises `MediaFetchError` where they cannot be had or are others, or `MediaTooLargeError`.
        """
        content = self._read_file(ref) if is_file_url(ref.url) else self._read_url(ref)
        if hashlib.sha256(content).hexdigest() != ref.sha256:
            raise MediaFetchError("the bytes are not those of its sha256: the file has changed since, or is another")
        return content

    def _holds(self, place: str, field: str | None = None) -> bool:
        """Whether a URL is below a root, as far as its text tells."""
        if is_file_url(place):
            path = Path(os.path.normpath(path_of(place, field)))
            return any(path.is_relative_to(folder) for folder in self._folders)
        return place.startswith(self._urls) and ".." not in unquote(place).split("/") and "::" not in place

    def _read_file(self, ref: MediaRef) -> bytes:
        folders = tuple(map(str, self._folders))
        most, part = self._max_bytes, (ref.offset, ref.num_bytes)
        return read_local_file(ref.url, folders, _FLAG, max_bytes=most, offset=part[0], num_bytes=part[1])

    def _read_url(self, ref: MediaRef) -> bytes:
        if not self._holds(ref.url):
            raise MediaFetchError(f"the URL is not below what {_FLAG} names here")
        try:
            content = self._part(ref) if ref.offset or ref.num_bytes else self._whole(ref)
        except ConfigurationError as error:  # of its file system
            raise MediaFetchError(error.message) from error
        except Exception as error:  # whatever the file system has
            raise media_error(ref.url, error) from error
        if len(content) > self._max_bytes:
            raise MediaTooLargeError(f"the file has more than {self._max_bytes} bytes")
        return content

    def _part(self, ref: MediaRef) -> bytes:
        files, path = file_system(ref.url)
        part: bytes = files.cat_file(path, ref.offset, ref.offset + (ref.num_bytes or self._max_bytes + 1))
        return part

    def _whole(self, ref: MediaRef) -> bytes:
        with open_stream(ref.url) as stream:
            return stream.read(self._max_bytes + 1)


def _checked(facts: Mapping[str, str], field: str) -> tuple[str, int, int]:
    """Return hash, offset and length; 0 is the length of what goes on to its end."""
    if unknown := facts.keys() - {"sha256", "offset", "length"}:
        raise MediaFetchError(f"nothing is called {min(unknown)} behind the # of a URL", field=field)
    if not _SHA256.fullmatch(facts.get("sha256", "")):
        raise MediaFetchError("sha256 is 64 hex digits in lower case", field=field)
    numbers = [facts.get(name, "0") for name in ("offset", "length")]
    if not all(map(_NUMBER.fullmatch, numbers)):
        raise MediaFetchError("offset and length are whole numbers", field=field)
    return facts["sha256"], int(numbers[0]), int(numbers[1])
