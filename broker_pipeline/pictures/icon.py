"""Windows icons: which of their pictures is shown, and where it is."""

from __future__ import annotations

import struct
from io import BytesIO

from PIL.IcoImagePlugin import IcoFile

from broker_pipeline.pictures.png import png_header

_PNG = b"\x89PNG"


def best_entry(content: bytes) -> tuple[int, bytes]:
    """Return the number, as Pillow counts, of the largest picture of most colours, and the file from there on."""
    entries = IcoFile(BytesIO(content)).entry
    number, entry = max(enumerate(entries), key=lambda item: (item[1].square, item[1].bpp))
    return number, content[entry.offset :]


def icon_size(content: bytes) -> tuple[int, int]:
    """Return width and height of the picture that is shown, by its own header: the directory's may be another."""
    _, picture = best_entry(content)
    if picture.startswith(_PNG):
        header = png_header(picture)
        return header.width, header.height
    width, doubled = struct.unpack_from("<II", picture, 4)
    return width, doubled // 2


def inner_png(content: bytes) -> bytes | None:
    """Return the picture that is shown, where that is a PNG."""
    _, picture = best_entry(content)
    return picture if picture.startswith(_PNG) else None
