"""Reads a URL that a stranger gave, and the one that it redirects to.

What stands in it reaches its host as it was given: signatures are made over the very characters, so that nothing is
decoded, encoded again or put into another order. Only what cannot be sent at all (spaces, control characters, what is
not ASCII) is encoded, and tabs and line ends are left out, as browsers do.
"""

from __future__ import annotations

from urllib.parse import quote, unquote, urljoin, urlsplit

from yarl import URL

from broker_pipeline.errors import MediaFetchError
from gateway.intake.data_url import is_data_url

MAX_URL_LENGTH = 8192
_AROUND = "".join(map(chr, range(0x21)))
_LEFT_OUT = str.maketrans("", "", "\t\r\n")
_AS_GIVEN = "".join(map(chr, range(0x21, 0x7F)))


def parse_url(text: str, name: str, base: URL | None = None) -> URL:
    """Check the form of a URL before anything is resolved; a relative one is meant from `base`.

    Raises `MediaFetchError` naming the field `name` where it is not plain http or https to a host.
    """
    if len(text) > MAX_URL_LENGTH:
        raise MediaFetchError(f"the URL is longer than {MAX_URL_LENGTH} characters", field=name)
    try:
        return _checked(_read(text, str(base or "")), name)
    except ValueError as error:
        what = "this" if base is None else "what the URL redirects to"
        raise MediaFetchError(f"{what} is not a URL: {error}", field=name) from error


def host_of(url: URL) -> str:
    """Return host and port, by which it is known whether anybody is there."""
    return f"{url.host}:{url.port}"


def host_of_link(text: str) -> str | None:
    """Return the host that a URL names; None: nothing that is fetched over the network."""
    if is_data_url(text):
        return None
    try:
        return host_of(parse_url(text, ""))
    except MediaFetchError:
        return None


def _read(text: str, base: str) -> URL:
    text = quote(text.strip(_AROUND).translate(_LEFT_OUT), safe=_AS_GIVEN, errors="surrogateescape")
    url = URL(text if urlsplit(text).scheme else urljoin(base, text), encoded=True)
    host = unquote(url.raw_host or "", errors="strict")
    return url if host == (url.raw_host or "") else url.with_host(host)


def _checked(url: URL, name: str) -> URL:
    if url.scheme not in ("http", "https"):
        raise MediaFetchError(f"only http, https and data URLs are read, not {url.scheme or 'a bare'!r}", field=name)
    if not url.host:
        raise MediaFetchError("the URL names no host", field=name)
    if url.user is not None or url.password is not None:
        raise MediaFetchError("a URL with a user name or password is not fetched", field=name)
    return url
