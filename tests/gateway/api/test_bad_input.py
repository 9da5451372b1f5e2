"""Bad input gets its typed error, names its field, and leaves the jobs alongside it alone."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from PIL import Image
from yarl import URL

from broker_pipeline.pictures.rule import PictureRule
from gateway.settings import FetchSettings, Limits
from gateway.wiring import Gateway
from tests.broker_pipeline.pictures.test_header import encoded, png_claiming
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import acting_conductor
from tests.kit.viewing.tiff_files import TiffKind, tiff_file
from tests.kit.viewing.videos import clip

LIMITS = Limits(max_body_bytes=200_000, pictures=PictureRule(max_bytes=100_000), max_images=4)


@pytest_asyncio.fixture
async def http(start_gateway: OpenGateway) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a gateway with small limits."""
    async with start_gateway(limits=LIMITS) as (_, url), aiohttp.ClientSession(base_url=url) as session:
        yield session


def data_url(content: bytes) -> str:
    return "data:;base64," + base64.b64encode(content).decode()


def upload(content: bytes, **fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    data.add_field("image", content, filename="x.jpg", content_type="image/jpeg")
    for name, text in fields.items():
        data.add_field(name, text)
    return data


async def refusal(http: aiohttp.ClientSession, **request: Any) -> tuple[int, str, str | None]:
    async with http.post("/v1/jobs", **request) as answer:
        body = await answer.json()
    assert set(body) == {"error"}, body
    error = body["error"]
    assert set(error) <= {"code", "message", "field", "retryable", "request_id"}
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert error["retryable"] is False
    assert error["message"]
    return answer.status, error["code"], error.get("field")


JPEG = encoded("JPEG", (40, 30))
SIGNED = TiffKind(b"II", 1, 2, 1, (16,), ())
PROMPT = b'--B\r\nContent-Disposition: form-data; name="prompt"'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"hello", (422, "not_an_image")),
        (b"", (422, "not_an_image")),
        (JPEG[:10], (422, "truncated_image")),
        (png_claiming(20_000, 20_000), (422, "image_too_large")),
        (png_claiming(3000, 10), (422, "image_shape")),
        (tiff_file(SIGNED, Image.new("RGBA", (8, 8))), (422, "unsupported_image")),
        (JPEG + bytes(100_000), (413, "media_too_large")),
    ],
    ids=["text", "empty", "truncated-header", "400-megapixels", "strip", "signed-samples", "large"],
)
async def test_bad_images(http: aiohttp.ClientSession, content: bytes, expected: tuple[int, str]) -> None:
    assert await refusal(http, data=upload(content)) == (*expected, "image[0]")
    assert await refusal(http, json={"images": [data_url(content)]}) == (*expected, "images[0]")


@pytest.mark.parametrize(("name", "text"), [("min_pixels", "0"), ("max_pixels", "many"), ("max_pixel", "9")])
async def test_bad_bounds_of_a_form(http: aiohttp.ClientSession, name: str, text: str) -> None:
    assert await refusal(http, data=upload(JPEG, **{name: text})) == (400, "invalid_request", name)


def video_upload(content: bytes) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    data.add_field("video", content, filename="x.mp4", content_type="video/mp4")
    return data


async def test_a_video_file_is_looked_at_before_its_job_is_accepted(start_gateway: OpenGateway) -> None:
    rule = PictureRule(max_video_bytes=50_000, max_video_s=3.0)
    whole, longer = clip(), clip(num_frames=40)
    async with (
        start_gateway(limits=Limits(pictures=rule)) as (_, url),
        aiohttp.ClientSession(base_url=url) as http,
    ):
        for request in ({"data": video_upload(whole)}, {"json": conversation("video", data_url(whole))}):
            async with http.post("/v1/jobs", **request) as answer:
                assert answer.status == 202, await answer.text()
        for content, expected in [
            (JPEG, (422, "not_a_video")),
            (whole[: len(whole) // 2], (422, "truncated_image")),
            (longer, (422, "video_too_long")),
            (whole + bytes(50_000), (413, "media_too_large")),
        ]:
            assert await refusal(http, data=video_upload(content)) == (*expected, "video[0]")
            found = await refusal(http, json=conversation("video", data_url(content)))
            assert found == (*expected, "messages[0].content[0].url")
        assert await refusal(http, data=upload(whole)) == (422, "not_an_image", "image[0]")


async def test_frames_that_cannot_be_of_one_size_are_refused_before_their_job_is_accepted(
    http: aiohttp.ClientSession,
) -> None:
    wide, high, small = (data_url(encoded("PNG", size)) for size in ((40, 30), (30, 40), (20, 30)))

    def body(*frames: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": "video", "frames": frames}]}]}

    assert await refusal(http, json=body(wide, wide, small)) == (
        422,
        "image_shape",
        "messages[0].content[0].frames[2]",
    )
    async with http.post("/v1/jobs", json=body(wide, high)) as answer:  # EXIF may turn one of them
        assert answer.status == 202


def conversation(kind: str, url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind, "url": url}]}]}


async def test_a_jpeg_truncated_in_its_data_is_taken(http: aiohttp.ClientSession) -> None:
    content = encoded("JPEG", (200, 200))
    async with http.post("/v1/jobs", data=upload(content[: len(content) // 2 + 300])) as answer:
        assert answer.status == 202


async def test_the_bad_one_of_several_images_is_named(http: aiohttp.ClientSession) -> None:
    images = [data_url(JPEG), data_url(JPEG), data_url(b"bad")]
    assert await refusal(http, json={"images": images}) == (422, "not_an_image", "images[2]")
    assert await refusal(http, json={"images": [data_url(JPEG)] * 5}) == (400, "invalid_request", "images[4]")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nno colon, secret\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"secret" * 10_000 + b"\r\n\r\n",
    ],
    ids=["nonsense", "version", "length", "negative", "header", "path", "colon", "control", "long_secret"],
)
async def test_what_is_no_http_is_refused_like_anything_else(
    http: aiohttp.ClientSession,
    running: tuple[Gateway, str],
    request_bytes: bytes,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = URL(running[1])
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request_bytes)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.split()[1] == b"400"
    error = json.loads(body)["error"]
    assert (error["code"], error["retryable"]) == ("invalid_request", False)
    assert error["message"].startswith("this is no request of HTTP/1.1: ")
    assert "secret" not in error["message"] + caplog.text + "".join(capfd.readouterr())
    assert f"X-Request-Id: {error['request_id']}".encode() in head
    async with http.get("/healthz") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:9/x.jpg", "private_address"),
        ("http://localhost/x.jpg", "private_address"),
        ("http://169.254.169.254/latest/meta-data", "private_address"),
        ("http://[::1]:8080/x", "private_address"),
        ("http://10.1.2.3/x", "private_address"),
        ("http://no-such-host.invalid/x.jpg", "media_fetch"),
        ("file:///etc/passwd", "media_fetch"),
        ("x.jpg", "media_fetch"),
    ],
)
async def test_bad_urls(http: aiohttp.ClientSession, url: str, code: str) -> None:
    assert await refusal(http, json={"images": [url]}) == (422, code, "images[0]")
    data = aiohttp.FormData(default_to_multipart=True)
    data.add_field("image", url)
    assert await refusal(http, data=data) == (422, code, "image[0]")


async def test_urls_of_an_allowed_network(start_gateway: OpenGateway) -> None:
    """A real site on the loopback interface: a picture, a page, a detour to a private address, and nobody."""

    async def picture(_: web.Request) -> web.Response:
        return web.Response(body=JPEG, content_type="text/plain")

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="image/jpeg")

    async def detour(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://10.1.2.3/")

    app = web.Application()
    app.add_routes([web.get("/picture", picture), web.get("/page", page), web.get("/detour", detour)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site = f"http://127.0.0.1:{runner.addresses[0][1]}"
    fetch = FetchSettings(allow_private_urls=("127.0.0.0/8",), timeout_s=5.0)
    try:
        async with start_gateway(fetch=fetch) as (_, url), aiohttp.ClientSession(base_url=url) as http:
            async with http.post("/v1/jobs", json={"images": [f"{site}/picture"]}) as answer:
                assert answer.status == 202
            for path, expected in [
                ("/page", (422, "not_an_image", "images[0]")),
                ("/missing", (422, "media_fetch", "images[0]")),
                ("/detour", (422, "private_address", "images[0]")),
            ]:
                assert await refusal(http, json={"images": [site + path]}) == expected
            async with http.post("/v1/jobs", json={"images": ["http://127.0.0.1:1/"]}) as answer:
                error = (await answer.json())["error"]
            assert (answer.status, error["code"], error["retryable"]) == (422, "media_fetch", True)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "", "images": [data_url(JPEG)]}, "prompt"),
        ({"prompt": "  \n"}, "prompt"),
        ({}, "images"),
        ({"prompt": "x", "colour": "red"}, "colour"),
        ({"prompt": "x", "sampling": {"temprature": 1}}, "sampling.temprature"),
        ({"prompt": "x", "sampling": {"temperature": -0.5}}, "sampling.temperature"),
        ({"prompt": "x", "sampling": {"top_p": -1}}, "sampling.top_p"),
        ({"prompt": "x", "sampling": {"top_k": -1}}, "sampling.top_k"),
        ({"prompt": "x", "sampling": {"max_tokens": -1}}, "sampling.max_tokens"),
        ({"prompt": "x", "sampling": {"repetition_penalty": -1}}, "sampling.repetition_penalty"),
        ({"prompt": "x", "metadata": {f"k{n}": "v" for n in range(17)}}, "metadata"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "data:,x"}, {"type": "text"}]}]},
         "messages[0].content[1].text"),
    ],
)  # fmt: skip
async def test_bad_fields(http: aiohttp.ClientSession, body: dict[str, Any], field: str) -> None:
    assert await refusal(http, json=body) == (400, "invalid_request", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"temperature": "-1"}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"heat": "1"}, "heat"),
        ({"metadata": '{"a": 1}'}, "metadata"),
        ({"metadata": '{"a": "b"}, "prompt": "smuggled"'}, "metadata"),
        ({"metadata": "not json"}, "metadata"),
        ({"request": '{"sampling": {"temperature": -1}}'}, "request.sampling.temperature"),
        ({"request": "{}", "prompt": "x"}, "prompt"),
    ],
)
async def test_bad_form_fields(http: aiohttp.ClientSession, fields: dict[str, str], field: str) -> None:
    assert await refusal(http, data=upload(JPEG, **fields)) == (400, "invalid_request", field)


async def test_a_field_given_twice(http: aiohttp.ClientSession) -> None:
    data = upload(JPEG, prompt="a")
    data.add_field("prompt", "b")
    assert await refusal(http, data=data) == (400, "invalid_request", "prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B",
        b"--B\r\n",
        b"--B\r\n\r\nx\r\n--B--\r\n",
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + JPEG,
        PROMPT + b"\r\nContent-Type: multipart/mixed; boundary=C\r\n\r\n--C\r\n",
        PROMPT + b"\r\n\r\n\xff\xfe\r\n--B--\r\n",
        PROMPT + b"\r\nContent-Transfer-Encoding: base64\r\n\r\neA==\r\n--B--\r\n",
        b"no boundary at all",
        b"--B\r\n" + b"X-Header: y\r\n" * 1000 + b"\r\n",
    ],
)
async def test_malformed_multipart(http: aiohttp.ClientSession, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    status, code, _ = await refusal(http, data=body, headers=headers)
    assert (status, code) == (400, "invalid_request")


async def test_a_multipart_body_without_boundary(http: aiohttp.ClientSession) -> None:
    assert (await refusal(http, data=b"x", headers={"Content-Type": "multipart/form-data"}))[:2] == (
        400,
        "invalid_request",
    )


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'"x"', b"null", b"[" * 100_000])
async def test_malformed_json(http: aiohttp.ClientSession, body: bytes) -> None:
    assert (await refusal(http, data=body, headers={"Content-Type": "application/json"}))[:2] == (
        400,
        "invalid_request",
    )


async def test_another_content_type(http: aiohttp.ClientSession) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "image/jpeg"):
        assert await refusal(http, data=JPEG, headers={"Content-Type": content_type}) == (
            400,
            "invalid_request",
            "Content-Type",
        )


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "naïve"])
async def test_bad_idempotency_keys(http: aiohttp.ClientSession, key: str) -> None:
    headers = {"Idempotency-Key": key}
    assert await refusal(http, data=upload(JPEG), headers=headers) == (400, "invalid_request", "Idempotency-Key")


async def drip(total: int, head: bytes = b"") -> AsyncIterator[bytes]:
    yield head
    for _ in range(total // 10_000):
        yield bytes(10_000)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=B"])
async def test_bodies_over_the_limit(http: aiohttp.ClientSession, content_type: str) -> None:
    """Announced, and streamed without a word about its length; in a part, and before the first one."""
    headers = {"Content-Type": content_type}
    expected = (413, "body_too_large", None)
    assert await refusal(http, data=b"x" * 200_001, headers=headers) == expected
    assert await refusal(http, data=drip(400_000, PROMPT + b"\r\n\r\n"), headers=headers) == expected
    preamble = b"x\r\n" * 100_000
    assert await refusal(http, data=drip(10_000, preamble), headers=headers) == expected


async def test_a_compressed_body_is_counted_as_it_unfolds(http: aiohttp.ClientSession) -> None:
    body = json.dumps({"prompt": "x" * 1_000_000}).encode()
    headers = {"Content-Type": "application/json"}
    assert await refusal(http, data=body, headers=headers, compress="gzip") == (413, "body_too_large", None)


async def test_paths_and_methods_that_do_not_exist(http: aiohttp.ClientSession) -> None:
    for method, path, status, code in [
        ("GET", "/v2/jobs", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ]:
        async with http.request(method, path) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (status, code)
            assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "status=lost", "after=%00", "page=2"])
async def test_bad_list_queries(http: aiohttp.ClientSession, query: str) -> None:
    async with http.get(f"/v1/jobs?{query}") as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["field"]) == (400, query.partition("=")[0])


async def test_jobs_alongside_bad_ones_finish(
    start_gateway: OpenGateway, transport: Any, redis: Any, namespace: str
) -> None:
    """Forty submissions at once, every other one bad: twenty results."""
    async with (
        start_gateway() as (_, url),
        aiohttp.ClientSession(base_url=url) as http,
        acting_conductor(transport, redis, namespace) as conductor,
        conductor.running(lambda *_: "fine"),
    ):

        async def submit(number: int) -> int:
            content = JPEG if number % 2 == 0 else png_claiming(20_000, 20_000)
            async with http.post("/v1/jobs", data=upload(content, prompt=f"{number}")) as answer:
                body = await answer.json()
            if answer.status != 202:
                return answer.status
            async with http.get(f"/v1/jobs/{body['job_id']}?wait_s=30") as answer:
                return len((await answer.json())["result"]["text"])

        outcomes = await asyncio.gather(*(submit(number) for number in range(40)))
    assert outcomes == [4, 422] * 20


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "foo"])
async def test_a_body_that_is_not_encoded_as_it_says(http: aiohttp.ClientSession, encoding: str) -> None:
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    found = await refusal(http, data=b'{"prompt": "a"}', headers=headers)
    assert found == (400, "invalid_request", "Content-Encoding")


async def test_bounds_of_a_job_that_cross_are_named(http: aiohttp.ClientSession) -> None:
    body = {"images": [data_url(JPEG)], "min_pixels": 5000, "max_pixels": 4000}
    assert await refusal(http, json=body) == (400, "invalid_request", "min_pixels")
    part = {"type": "image", "url": data_url(JPEG), "min_pixels": 5000, "max_pixels": 4000}
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert await refusal(http, json=body) == (400, "invalid_request", "messages[0].content[0].min_pixels")
