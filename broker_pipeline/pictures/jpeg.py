"""JPEG files by their segments: the frame's header, and what a decoder needs of the rest."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from broker_pipeline.errors import UnsupportedImageError
from broker_pipeline.pictures.stripped import Stripped

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODED_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC9: "arithmetic", 0xCA: "arithmetic"}
_WITHOUT_BODY = {0x01, *range(0xD0, 0xD9)}
_COMMENT, _APPLICATION = 0xFE, range(0xE0, 0xF0)
_JFIF, _EXIF, _ICC, _ADOBE = 0xE0, 0xE1, 0xE2, 0xEE
_MARKER = re.compile(rb"\xff+([^\xff\x00])", re.DOTALL)
_IS_DATA = np.isin(np.arange(256), [0x00, 0xFF, *range(0xD0, 0xD8)])
"""What follows 0xff within a scan's data: a zero for 0xff itself, a restart, or one more 0xff of a marker to come."""
_AT_ONCE = 2**20
"""Bytes looked at together: of a file of nothing but 0xff each takes eight more."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A marker and its body `content[start:stop]`."""

    marker: int
    start: int
    stop: int


def segments(content: bytes) -> Iterator[Segment]:
    """Yield the segments up to the first scan's. Raises `ValueError` where there is none."""
    place = 2
    while match := _MARKER.search(content, place):
        marker, place = match[1][0], match.end()
        if marker in _WITHOUT_BODY:
            continue
        length = int.from_bytes(content[place : place + 2], "big")
        if length < 2 or place + length > len(content):
            break
        yield Segment(marker, place + 2, place + length)
        if marker == _SOS:
            return
        place += length
    raise ValueError("the JPEG has no scan")


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Return width and height.

    Raises:
        UnsupportedImageError: a kind of JPEG that is not decoded here.
        ValueError: there is no frame.
    """
    frame = next((segment for segment in segments(content) if segment.marker in _FRAMES), None)
    if frame is None:
        raise ValueError("the JPEG has no frame")
    depth, height, width, num_colours = struct.unpack_from(">BHHB", content, frame.start)
    if frame.marker not in _DECODED_FRAMES:
        raise UnsupportedImageError(f"a lossless or hierarchical JPEG (frame {frame.marker:#x}) is not decoded here")
    if depth != 8:
        raise UnsupportedImageError(f"a JPEG of {depth} bits is not decoded here, only of 8")
    if num_colours not in {1, 3, 4}:
        raise UnsupportedImageError(f"a JPEG of {num_colours} colours is not decoded here, only of 1, 3 or 4")
    return width, height


def strip_jpeg(content: bytes) -> Stripped:
    """Leave out comments and what applications have added, and end the file where its data do."""
    kept = [b"\xff\xd8"]
    profile: list[bytes] = []
    exif: bytes | None = None
    scan = 2
    for segment in segments(content):
        body, scan = content[segment.start : segment.stop], segment.stop
        if segment.marker == _EXIF and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        elif segment.marker == _ICC and body.startswith(b"ICC_PROFILE\0"):
            profile.append(body[12:])
        if _is_needed(segment.marker, body):
            kept.append(bytes((0xFF, segment.marker)) + content[segment.start - 2 : segment.stop])
    end = _end_of_scans(content, scan)
    kept.append(content[scan:end])
    kept.append(bytes((0xFF, _EOI)))
    return Stripped(b"".join(kept), _join_profile(profile), exif, has_end=end < len(content))


def _is_needed(marker: int, body: bytes) -> bool:
    """Whether a decoder needs a segment: JFIF and Adobe say what the colours are."""
    if marker == _JFIF:
        return body.startswith(b"JFIF\0") and len(body) >= 14
    if marker == _ADOBE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return marker != _COMMENT and marker not in _APPLICATION


def _join_profile(parts: list[bytes]) -> bytes | None:
    """Join an ICC profile, each of whose parts begins with its number, from 1, and how many there are."""
    ordered = sorted(parts)
    if [part[:2] for part in ordered] != [bytes((number, len(parts))) for number in range(1, len(parts) + 1)]:
        return None
    return b"".join(part[2:] for part in ordered) or None


def _end_of_scans(content: bytes, place: int) -> int:
    """Return where the data of the last scan end; segments between scans belong to them."""
    for marker in _markers_in_scans(content, place):
        if marker <= place:  # within the segment before
            continue
        if content[marker] in {_EOI, _SOI}:
            return place + len(content[place:marker].rstrip(b"\xff"))
        place = marker + 1 + max(2, int.from_bytes(content[marker + 1 : marker + 3], "big"))
    return len(content)


def _markers_in_scans(content: bytes, place: int) -> Iterator[int]:
    """Yield where the second byte of each marker from `place` on is.

    By numpy, as data have a zero behind every 256th byte: a search by `re` took 1.3 ms of Python's lock for 115 kB.
    """
    for first in range(place, len(content), _AT_ONCE):
        data = np.frombuffer(content, np.uint8, offset=first)[: _AT_ONCE + 1]
        seconds = np.flatnonzero(data[:-1] == 0xFF) + 1
        yield from (first + int(second) for second in seconds[~_IS_DATA[data[seconds]]])
