"""Bytes inside URLs."""

import base64

import pytest

from broker_pipeline.errors import InvalidRequestError, MediaTooLargeError
from gateway.intake.data_url import decode_data_url, is_data_url


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("data:image/png;base64," + base64.b64encode(b"\x00\xffpng").decode(), b"\x00\xffpng"),
        ("DATA:;BASE64,AAE=", b"\x00\x01"),
        ("data:;base64,AA%3D%3D", b"\x00"),
        ("data:,plain%20text", b"plain text"),
        ("data:text/plain;charset=utf-8,a,b", b"a,b"),
    ],
)
def test_data_urls(url: str, content: bytes) -> None:
    assert is_data_url(url)
    assert decode_data_url(url, max_bytes=100, field="f") == content


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:;base64,A", "data:;base64,%%%", "data:;base64,é"])
def test_broken_data_urls_name_the_field(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_data_url(url, max_bytes=100, field="images[3]")
    assert caught.value.field == "images[3]"


def test_a_large_one_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(MediaTooLargeError):
        decode_data_url("data:;base64," + "A" * 1000, max_bytes=100, field="f")
