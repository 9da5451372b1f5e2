"""Fetching from strangers' URLs, against real servers on the loopback interface."""

import asyncio
import ipaddress
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from broker_pipeline.errors import MediaFetchError, MediaTooLargeError, PrivateAddressError
from gateway.address_guard import AddressGuard
from gateway.intake.down_hosts import DownHosts
from gateway.intake.fetch import ByteBudget, ImageFetcher
from gateway.settings import FetchSettings

LOOPBACK = AddressGuard((ipaddress.ip_network("127.0.0.1/32"),))
MAX_BYTES = 100_000


class Site:
    """A web site that counts its visitors and remembers what they sent."""

    def __init__(self) -> None:
        self.requests: list[web.BaseRequest] = []
        self.url = URL()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        name, _, argument = request.path.strip("/").partition("/")
        return await ANSWERS[name](request, argument)


async def picture(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    return web.Response(body=b"picture", headers={"Content-Type": "text/html", "Set-Cookie": "a=b"})


async def status(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    return web.Response(status=int(argument))


async def hops(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    left = int(argument)
    target = f"/hops/{left - 1}" if left > 1 else "/picture"
    return web.Response(status=302, headers={"Location": target, "Set-Cookie": "a=b"})


async def to(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": request.query["url"]})


async def nowhere(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    return web.Response(status=301)


async def large(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    response = web.StreamResponse()
    if argument == "announced":
        response.content_length = MAX_BYTES + 1
    await response.prepare(request)
    for _ in range(MAX_BYTES // 1000 + 1):
        await response.write(bytes(1000))
    return response


async def slow(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x")
        await asyncio.sleep(0.02)


async def gzip(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})


async def silent(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    return await asyncio.Future()


async def closing(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.StreamResponse()


async def short(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b"x")
    assert request.transport is not None
    request.transport.abort()
    return response


async def garbage(request: web.BaseRequest, argument: str) -> web.StreamResponse:
    assert isinstance(request.transport, asyncio.Transport)
    request.transport.write(b"this is not HTTP\r\n\r\n")
    request.transport.close()
    return web.StreamResponse()


ANSWERS = {
    function.__name__: function
    for function in (picture, status, hops, to, nowhere, large, slow, gzip, silent, closing, short, garbage)
}


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Site]:
    runner = web.ServerRunner(web.Server(site.answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    site.url = URL(f"http://{host}:{port}")
    try:
        yield site
    finally:
        await runner.cleanup()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Site()) as running:
        yield running


def fetcher(guard: AddressGuard = LOOPBACK, **settings: object) -> ImageFetcher:
    return ImageFetcher(guard, FetchSettings(**settings), DownHosts())  # type: ignore[arg-type]


async def fetch(url: URL | str, using: ImageFetcher | None = None) -> bytes:
    return await (using or fetcher()).fetch(str(url), ByteBudget(10 * MAX_BYTES), max_bytes=MAX_BYTES, name="images[0]")


async def test_bytes_are_fetched_whatever_their_type(site: Site) -> None:
    assert await fetch(site.url / "picture") == b"picture"


async def test_nothing_is_told_that_was_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert await fetch(site.url / "hops/1") == b"picture"
    assert all("Cookie" not in request.headers for request in site.requests)
    assert site.requests[-1].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001"])
async def test_loopback_is_refused_by_default(site: Site, host: str) -> None:
    with pytest.raises(PrivateAddressError) as caught:
        await fetch(f"http://{host}:{site.url.port}/picture", fetcher(AddressGuard()))
    assert (caught.value.field, caught.value.retryable) == ("images[0]", False)
    assert site.requests == []


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0177.0.0.1", "0x7f.1"])
async def test_loopback_is_refused_however_it_is_spelled(site: Site, host: str) -> None:
    """Newer versions of aiohttp refuse these before the guard is asked."""
    with pytest.raises(MediaFetchError) as caught:
        await fetch(f"http://{host}:{site.url.port}/picture", fetcher(AddressGuard()))
    assert caught.value.field == "images[0]"
    assert site.requests == []


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
)
async def test_private_literals_are_refused(host: str) -> None:
    with pytest.raises(PrivateAddressError):
        await fetch(f"http://{host}:9/", fetcher(AddressGuard()))


@pytest.mark.parametrize("target", ["http://127.0.0.2:9/", "http://[::1]:9/", "http://10.9.8.7/"])
async def test_a_redirect_to_a_private_address_is_refused(site: Site, target: str) -> None:
    with pytest.raises(PrivateAddressError):
        await fetch((site.url / "to").with_query(url=target))


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://example.com/", "gopher://x/", "http://u:p@example.com/"]
)
async def test_a_redirect_to_another_scheme_is_refused(site: Site, target: str) -> None:
    with pytest.raises(MediaFetchError, match=r"only http|user name"):
        await fetch((site.url / "to").with_query(url=target))


async def test_redirects_are_followed_up_to_the_limit(site: Site) -> None:
    assert await fetch(site.url / "hops/3", fetcher(max_redirects=3)) == b"picture"
    with pytest.raises(MediaFetchError, match="more than 3 times"):
        await fetch(site.url / "hops/4", fetcher(max_redirects=3))
    with pytest.raises(MediaFetchError, match="without a Location"):
        await fetch(site.url / "nowhere")


@pytest.mark.parametrize("how", ["announced", "streamed"])
async def test_large_files_are_cut_off(site: Site, how: str) -> None:
    with pytest.raises(MediaTooLargeError):
        await fetch(site.url / "large" / how)


async def test_a_budget_covers_all_images_of_a_job(site: Site) -> None:
    budget = ByteBudget(10)
    await fetcher().fetch(str(site.url / "picture"), budget, max_bytes=MAX_BYTES, name="images[0]")
    with pytest.raises(MediaTooLargeError, match="together") as caught:
        await fetcher().fetch(str(site.url / "picture"), budget, max_bytes=MAX_BYTES, name="images[1]")
    assert caught.value.field == "images[1]"


async def test_a_site_that_drips_ends_at_the_timeout(site: Site) -> None:
    with pytest.raises(MediaFetchError, match=r"within 0\.2 s") as caught:
        await fetch(site.url / "slow", fetcher(timeout_s=0.2))
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("path", "reason", "may_pass"),
    [
        ("status/400", "400", False),
        ("status/403", "403", False),
        ("status/404", "404", False),
        ("status/408", "408", True),
        ("status/410", "410", False),
        ("status/425", "425", True),
        ("status/429", "429", True),
        ("status/500", "500", True),
        ("status/503", "503", True),
        ("status/504", "504", True),
        ("gzip", "compressed", False),
        ("nowhere", "Location", False),
        ("short", "cannot", True),
        ("garbage", "cannot", False),
    ],
)
async def test_answers_that_are_no_file(site: Site, path: str, reason: str, may_pass: bool) -> None:
    with pytest.raises(MediaFetchError, match=reason) as caught:
        await fetch(site.url / path)
    assert caught.value.to_failure().retryable == may_pass


@pytest.mark.parametrize(
    ("path", "is_there"),
    [
        ("silent", False),
        ("closing", False),
        ("to?url=/silent", False),
        ("slow", True),
        ("short", True),
        ("garbage", True),
        ("status/503", True),
    ],
)
async def test_a_host_that_says_nothing_is_not_there(site: Site, path: str, is_there: bool) -> None:
    hosts = DownHosts(after_s=0.0)
    with pytest.raises(MediaFetchError) as caught:
        await fetch(f"{site.url}/{path}", ImageFetcher(LOOPBACK, FetchSettings(timeout_s=0.3), hosts))
    where = f"{site.url.host}:{site.url.port}"
    assert (hosts.is_down(where, time.monotonic()), caught.value.host) == (not is_there, None if is_there else where)


async def test_nobody_listens(site: Site) -> None:
    with pytest.raises(MediaFetchError, match="cannot be fetched") as caught:
        await fetch("http://127.0.0.1:1/picture")
    assert caught.value.retryable


async def test_what_is_no_tls_stays_so(site: Site) -> None:
    with pytest.raises(MediaFetchError, match="cannot be fetched") as caught:
        await fetch(site.url.with_scheme("https").with_port(site.url.port) / "picture")
    assert not caught.value.retryable


async def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(MediaFetchError, match="does not resolve") as caught:
        await fetch("http://no-such-host.invalid/")
    assert not caught.value.retryable


@pytest.mark.skipif(shutil.which("unshare") is None, reason="apt-get install util-linux")
async def test_a_name_server_that_is_away_may_come_back() -> None:
    """In a network of its own, without any other, where no name server can be asked."""
    code = """
import asyncio
from tests.gateway.intake.test_fetch import MediaFetchError, fetch
try:
    asyncio.run(fetch("http://example.com/"))
except MediaFetchError as error:
    print(error.retryable, error.message)
"""
    argv = ("unshare", "--map-root-user", "--net", sys.executable, "-c", code)
    child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    said, errors = await child.communicate()
    if errors.startswith(b"unshare:"):
        pytest.skip(errors.decode())
    assert said.decode().startswith("True example.com cannot be fetched from: the name does not resolve"), errors


@pytest.mark.parametrize("media_dir", [None, "/"])
@pytest.mark.parametrize(("fragment", "flag"), [("", "--media-dir"), ("#sha256=" + "0" * 64, "--media-roots")])
async def test_a_file_that_may_not_be_read_names_the_flag_that_lets_it(
    tmp_path: Path, media_dir: str | None, fragment: str, flag: str
) -> None:
    files = fetcher(media_dir=media_dir and str(tmp_path))
    with pytest.raises(MediaFetchError, match=f"{flag} names"):
        await files.fetch(f"file:///etc/hostname{fragment}", ByteBudget(MAX_BYTES), max_bytes=MAX_BYTES, name="image")
