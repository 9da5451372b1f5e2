"""Bytes inside URLs."""

import base64
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.errors import InvalidRequestError, MediaTooLargeError
from gateway.intake.data_url import decode_data_url, is_data_url


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("data:image/png;base64," + base64.b64encode(b"\x00\xffpng").decode(), b"\x00\xffpng"),
        ("DATA:;BASE64,AAE=", b"\x00\x01"),
        ("data:;base64,AA%3D%3D", b"\x00"),
        ("data:;base64,AA", b"\x00"),
        ("data:;base64,", b""),
        (" data:image/jpeg;charset=x; base64 ,A\r\nAE\t =\n", b"\x00\x01"),
        ("data:;base64,AA%0D%0AE%3D%20", b"\x00\x01"),
        ("data:;base64,-_-_#part", b"\xfb\xff\xbf"),
        ("data:;base64,+/+/", b"\xfb\xff\xbf"),
        ("data:,plain%20text", b"plain text"),
        ("data:,a+b-c_ d#part", b"a+b-c_ d"),
        ("data:,\u00e4", "\u00e4".encode()),
        ("data:text/plain;charset=utf-8,a,b", b"a,b"),
    ],
)
def test_data_urls(url: str, content: bytes) -> None:
    assert is_data_url(url)
    assert decode_data_url(url, max_bytes=100, field="f") == content


def spellings(content: bytes) -> Iterator[str]:
    """base64 as encoders of this world write it."""
    plain = base64.b64encode(content).decode()
    for text in (plain, base64.urlsafe_b64encode(content).decode(), plain.rstrip("=")):
        yield text
        yield quote(text, safe="")
        for end in ("\n", "\r\n", "%0A", " "):
            yield end.join(text[start : start + 76] for start in range(0, len(text), 76)) + end


@given(st.binary(max_size=300))
def test_every_spelling_of_base64_is_read(content: bytes) -> None:
    for text in spellings(content):
        assert decode_data_url(f"data:image/png;base64,{text}", max_bytes=300, field="f") == content


BROKEN = ("A", "AAAAA", "%%%", "\u00e4", "AA=", "A===", "=", "AA==A", "AA==AA==", "A*AA", "AA.A")


@pytest.mark.parametrize("url", ["data:image/png;base64", *(f"data:;base64,{body}" for body in BROKEN)])
def test_broken_data_urls_name_the_field(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_data_url(url, max_bytes=100, field="images[3]")
    assert caught.value.field == "images[3]"


def test_a_large_one_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(MediaTooLargeError):
        decode_data_url("data:;base64," + "A" * 1000, max_bytes=100, field="f")
