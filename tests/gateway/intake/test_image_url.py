"""URLs of strangers: what they ask for is what their host is asked for, character by character."""

import asyncio
import ipaddress
import random
import string
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from broker_pipeline.errors import MediaFetchError
from gateway.address_guard import AddressGuard
from gateway.intake.down_hosts import DownHosts
from gateway.intake.fetch import ByteBudget, ImageFetcher
from gateway.intake.image_url import parse_url
from gateway.settings import FetchSettings

SENDABLE = string.ascii_letters + string.digits + "-._~:/[]@!$&'()*+,;=%|^`{}\"<>\\"
SIGNED = (
    "/b/a%20%2Fb.jpg?X-Amz-Credential=AK%2F2026%2Fs3&X-Amz-SignedHeaders=host&X-Amz-Signature=0f%2f",
    "/a%2fb%2Fc?sig=a+b%2B%3d%3D&se=2026-01-01T00%3A00%3A00Z",
    "/p?response-content-disposition=inline%3B%20filename%3D%22a%27b.jpg%22&Expires=1",
    "/%7Euser/~user/a;v=1.2/,x/(1)/a%3Bb",
    "/a//b/./c/../d",
    "/p?b=2&a=1&b=3&c&=&d==%26&&",
    "/%e4%BD%a0?q=%zz%",
    "/p?next=http://other/?x=1&y=[1]{2}|'\"",
)


class RawSite:
    """Remembers request lines as they came; answers the first of a connection's path in `redirects` with a redirect."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.location: bytes | None = None
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split(b" ")[1].decode("latin-1"))
        location, self.location = self.location, None
        start = b"HTTP/1.1 200 OK\r\n" if location is None else b"HTTP/1.1 302 Found\r\nLocation: %b\r\n" % location
        writer.write(start + b"Content-Length: 1\r\nConnection: close\r\n\r\nx")
        await writer.drain()
        writer.close()

    async def asked_for(self, url: str, *, location: str | None = None) -> str:
        """Fetch `url`, with a redirect to `location` where there is one, and return what was asked for last."""
        self.location = None if location is None else location.encode("utf-8", "surrogateescape")
        fetcher = ImageFetcher(AddressGuard((ipaddress.ip_network("127.0.0.1/32"),)), FetchSettings(), DownHosts())
        assert await fetcher.fetch(url, ByteBudget(100), max_bytes=100, name="f") == b"x"
        return self.asked[-1]


@pytest_asyncio.fixture
async def site() -> AsyncIterator[RawSite]:
    site = RawSite()
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0)
    async with server:
        site.port = server.sockets[0].getsockname()[1]
        yield site


def random_targets() -> list[str]:
    chance = random.Random(5)
    paths = ["/" + "".join(chance.choices(SENDABLE, k=chance.randrange(12))) for _ in range(60)]
    queries = ["?" + "".join(chance.choices(SENDABLE + "?", k=chance.randrange(1, 20))) for _ in range(60)]
    return [path + query for path, query in zip(paths, queries, strict=True)]


async def test_a_host_is_asked_for_what_was_given(site: RawSite) -> None:
    origin = f"http://127.0.0.1:{site.port}"
    for target in (*SIGNED, *random_targets()):
        assert await site.asked_for(origin + target) == target
        assert await site.asked_for(f"{origin}/a?b", location=origin + target) == target
        assert await site.asked_for(f"{origin}{target}#part") == target


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/x%2Fy/%7e?q=%2f+%zz", "/x%2Fy/%7e?q=%2f+%zz"),
        ("c%2Fd?q=a%20b", "/a%2F/c%2Fd?q=a%20b"),
        ("../c?y=%2F", "/c?y=%2F"),
        ("?q=%2f", "/a%2F/b?q=%2f"),
        ("//127.0.0.1:{port}/p?%7E", "/p?%7E"),
        ("/\u00e4 b?\u00fc", "/%C3%A4%20b?%C3%BC"),
        ("/\udce4", "/%E4"),
    ],
)
async def test_a_relative_redirect_keeps_its_characters(site: RawSite, location: str, expected: str) -> None:
    url = f"http://127.0.0.1:{site.port}/a%2F/b?x=%2f"
    assert await site.asked_for(url, location=location.format(port=site.port)) == expected


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("http://h", "/", "h"),
        ("http://h?x", "/?x", "h"),
        (" \thttp://h/a\r\nb \n", "/ab", "h"),
        ("http://h/a b?c d", "/a%20b?c%20d", "h"),
        ("http://b\u00fccher.example/\u00e4?\u00fc=%fc", "/%C3%A4?%C3%BC=%fc", "xn--bcher-kva.example"),
        ("HTTP://h/\x00\x7f", "/%00%7F", "h"),
        ("http://%68/", "/", "h"),
    ],
)
def test_what_cannot_be_sent_is_encoded_as_browsers_do(url: str, target: str, host: str) -> None:
    parsed = parse_url(url, "f")
    assert (parsed.raw_path_qs, parsed.raw_host) == (target, host)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "ftp://a/b",
        "javascript:1",
        "http://u@a/b",
        "http://[::1",
        "http://a:99999/",
        "http://a%2Fb/",
        "http://a\\@b/",
        "http://\ud800/",
        "http://" + "a" * 9000,
    ],
)
def test_what_is_no_url_to_fetch(url: str) -> None:
    with pytest.raises(MediaFetchError) as caught:
        parse_url(url, "images[2]")
    assert caught.value.field == "images[2]"
