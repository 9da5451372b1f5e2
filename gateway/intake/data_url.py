"""Takes the bytes out of a `data:` URL (RFC 2397), as browsers do.

base64 may be broken into lines, lack its padding and have `%` escapes; it may be base64url, which browsers refuse.
"""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from broker_pipeline.errors import InvalidRequestError, MediaTooLargeError

_SPACES = b"\t\n\f\r "
_PLAIN = bytes.maketrans(b"-_", b"+/")


def is_data_url(url: str) -> bool:
    """Say whether `url` carries its bytes in itself."""
    return url.lstrip()[:5].lower() == "data:"


def decode_data_url(url: str, *, max_bytes: int, field: str) -> bytes:
    """Return the bytes of a `data:` URL, base64 or percent-encoded; its media type is not believed.

    Raises `InvalidRequestError` or `MediaTooLargeError` naming the field.
    """
    header, comma, body = url.strip().partition("#")[0].partition(",")
    if not comma:
        raise InvalidRequestError("a data: URL needs a comma before its bytes", field=field)
    content = unquote_to_bytes(body) if "%" in body else body.encode()
    if header.rpartition(";")[2].strip().lower() != "base64":
        return content
    digits = content.translate(_PLAIN, _SPACES)
    if len(digits) * 3 // 4 > max_bytes + 2:
        raise MediaTooLargeError(f"the data: URL holds more than {max_bytes} bytes", field=field)
    return _decode_base64(digits, field)


def _decode_base64(digits: bytes, field: str) -> bytes:
    """Decode digits with all of their padding, or none."""
    try:
        return base64.b64decode(digits if b"=" in digits else digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error as error:
        raise InvalidRequestError(f"the data: URL is not valid base64: {error}", field=field) from error
