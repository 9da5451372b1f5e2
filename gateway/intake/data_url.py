"""Takes the bytes out of a `data:` URL (RFC 2397)."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from broker_pipeline.errors import InvalidRequestError, MediaTooLargeError


def is_data_url(url: str) -> bool:
    """Say whether `url` carries its bytes in itself."""
    return url[:5].lower() == "data:"


def decode_data_url(url: str, *, max_bytes: int, field: str) -> bytes:
    """Return the bytes of a `data:` URL, base64 or percent-encoded; its media type is not believed."""
    header, comma, body = url.partition(",")
    if not comma:
        raise InvalidRequestError("a data: URL needs a comma before its bytes", field=field)
    is_base64 = header.rpartition(";")[2].strip().lower() == "base64"
    if is_base64 and len(body) * 3 // 4 > max_bytes + 2:
        raise MediaTooLargeError(f"the data: URL holds more than {max_bytes} bytes", field=field)
    return _decode_base64(body, field) if is_base64 else unquote_to_bytes(body)


def _decode_base64(body: str, field: str) -> bytes:
    try:
        raw = unquote_to_bytes(body) if "%" in body else body.encode("ascii")
        return base64.b64decode(raw, validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidRequestError("the data: URL is not valid base64", field=field) from error
