"""The samples of PBM, PGM, PPM and PFM files. Pillow reads most kinds one by one, in Python."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from broker_pipeline.errors import TruncatedImageError
from broker_pipeline.pictures.pnm import PnmHeader, pnm_header
from stages.pictures.levels import Levels, Samples, from_floats, from_integers

_COMMENT = re.compile(rb"#[^\r\n]*+")


def pnm_image(content: bytes) -> Image.Image:
    """Return a grey or RGB image of 8 bits.

    Raises:
        TruncatedImageError: samples are missing, or not numbers.
    """
    header = pnm_header(content)
    samples = _READERS[header.kind](header, content[header.start :])
    if samples.size < header.width * header.height * header.num_samples:
        raise TruncatedImageError("the image is truncated: it ends before its last row")
    shape = (header.height, header.width) if header.num_samples == 1 else (header.height, header.width, 3)
    pixels = _eight_bits(samples, header.scale).reshape(shape)
    return Image.fromarray(pixels[::-1] if header.kind in "fF" else pixels)


def _eight_bits(samples: Samples, white: float) -> Levels:
    if white == 255 and samples.dtype == np.uint8:
        return samples.astype(np.uint8, copy=False)
    return from_floats(samples) if samples.dtype.kind == "f" else from_integers(samples, white)


def _binary(header: PnmHeader, body: bytes) -> Samples:
    dtype = np.dtype(">u2" if header.scale > 255 else "u1")
    return _from_bytes(header, body, dtype)


def _floats(header: PnmHeader, body: bytes) -> Samples:
    return _from_bytes(header, body, np.dtype("<f4" if header.scale < 0 else ">f4"))


def _from_bytes(header: PnmHeader, body: bytes, dtype: np.dtype[np.generic]) -> Samples:
    wanted = header.width * header.height * header.num_samples
    return np.frombuffer(body, dtype, count=min(wanted, len(body) // dtype.itemsize))


def _bitmap(header: PnmHeader, body: bytes) -> Samples:
    stride = (header.width + 7) // 8
    rows = np.frombuffer(body, np.uint8, count=min(len(body), stride * header.height) // stride * stride)
    return 1 - np.unpackbits(rows.reshape(-1, stride), axis=1, count=header.width).reshape(-1)


def _plain(header: PnmHeader, body: bytes) -> Samples:
    wanted = header.width * header.height * header.num_samples
    try:
        numbers = np.fromstring(_COMMENT.sub(b"", body).decode("ascii"), dtype=np.int64, count=-1, sep=" ")
    except (ValueError, UnicodeDecodeError, DeprecationWarning) as error:
        raise TruncatedImageError(f"the image is corrupt: its samples are no numbers ({error})") from error
    return numbers[:wanted].clip(0, 65535)


def _plain_bitmap(header: PnmHeader, body: bytes) -> Samples:
    digits = _COMMENT.sub(b"", body).translate(None, b" \t\n\v\f\r")[: header.width * header.height]
    return 1 - (np.frombuffer(digits, np.uint8) - ord("0")).clip(0, 1)


_READERS = {
    "1": _plain_bitmap,
    "2": _plain,
    "3": _plain,
    "4": _bitmap,
    "5": _binary,
    "6": _binary,
    "f": _floats,
    "F": _floats,
}
