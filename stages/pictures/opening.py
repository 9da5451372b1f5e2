"""Opens a picture's file, without what it does not need, and finds out whether its pixels are all there.

The rule is one for all formats: a picture is whole when the data of every row decode. End markers, and whatever stands
behind the pixels, may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ExifTags import Base
from PIL.IcoImagePlugin import IcoFile

from broker_pipeline.errors import ImageTooLargeError, PipelineError, TruncatedImageError
from broker_pipeline.pictures.header import why_in_words
from broker_pipeline.pictures.icon import best_entry, inner_png
from broker_pipeline.pictures.jpeg import strip_jpeg
from broker_pipeline.pictures.png import has_every_row, strip_png
from broker_pipeline.pictures.stripped import Stripped
from broker_pipeline.pictures.webp import strip_webp
from stages.pictures.jpeg_rows import has_every_block
from stages.pictures.pnm_pixels import pnm_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.ImageFile import ImageFile

_END_OF_CODESTREAM = b"\xff\xd9"
_WHITE_IS_ZERO = 0


@dataclass(frozen=True, slots=True)
class OpenedPicture:
    """A picture as its file has it, decoded. Its profile may be broken."""

    image: Image.Image
    icc_profile: bytes | None = None
    orientation: int = 1
    """As EXIF counts, from 1 to 8."""
    white: float = 65535.0
    """The sample that is white, where samples have more than 8 bits."""
    is_negative: bool = False
    """Whether 0 is white instead, where samples have more than 8 bits."""


def open_picture(content: bytes, name: str) -> OpenedPicture:
    """Decode a picture in the format `name`, whose header was checked.

    Raises:
        TruncatedImageError: rows are missing, or the data are corrupt.
        ImageTooLargeError: it does not fit into memory.
    """
    return _OPENERS[name](content)


@contextmanager
def _explained() -> Iterator[None]:
    """Say what is wrong with a file that a decoder does not take. Nothing but a decoder's call belongs in here."""
    try:
        yield
    except PipelineError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the image decodes to more than Pillow allows: {error}") from error
    except MemoryError as error:
        raise ImageTooLargeError("the image does not fit into this worker's memory") from error
    except Exception as error:  # decoders trip over a stranger's bytes in every way there is
        raise TruncatedImageError(f"the image is truncated or corrupt{why_in_words(error)}") from error


def _load(reader: type[ImageFile], content: bytes) -> ImageFile:
    with _explained(), reader(BytesIO(content)) as image:
        image.load()
        return image


def _require_whole(is_whole: bool) -> None:
    if not is_whole:
        raise TruncatedImageError("the image is truncated: it ends before its last row")


def _with_metadata(image: Image.Image, stripped: Stripped) -> OpenedPicture:
    exif = Image.Exif()
    return OpenedPicture(image, stripped.icc_profile, _orientation(lambda: _loaded(exif, stripped.exif)))


def _loaded(exif: Image.Exif, content: bytes | None) -> Image.Exif:
    if content is not None:
        exif.load(content if content.startswith(b"Exif\0\0") else b"Exif\0\0" + content)
    return exif


def _orientation(read: Callable[[], Image.Exif]) -> int:
    try:
        found = read().get(Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - metadata, however broken, are no reason to refuse a picture
        return 1
    return found if isinstance(found, int) and found in range(1, 9) else 1


def _open_jpeg(content: bytes) -> OpenedPicture:
    with _explained():
        stripped = strip_jpeg(content)
    image = _load(JpegImagePlugin.JpegImageFile, stripped.content)
    _require_whole(has_every_block(image, stripped))
    return _with_metadata(image, stripped)


def _open_png(content: bytes) -> OpenedPicture:
    with _explained():
        stripped = strip_png(content)
    image = _load(PngImagePlugin.PngImageFile, stripped.content)
    end = image.crop((0, max(0, image.height - 2), image.width, image.height))  # rows never written to are zero
    with _explained():
        _require_whole(any(end.tobytes()) or has_every_row(stripped.content))
    return _with_metadata(image, stripped)


def _open_webp(content: bytes) -> OpenedPicture:
    stripped = strip_webp(content)
    return _with_metadata(_load(WebPImagePlugin.WebPImageFile, stripped.content), stripped)


def _open_gif(content: bytes) -> OpenedPicture:
    with _explained(), Image.open(BytesIO(content), formats=("GIF",)) as image:
        frame = image.tile[0].extents
        image.load()
    if frame == (0, 0, *image.size) or image.has_transparency_data or frame is None:
        return OpenedPicture(image)
    alpha = Image.new("L", image.size)  # nothing was drawn around the first frame
    alpha.paste(255, frame)
    shown = image.convert("RGBA")
    shown.putalpha(alpha)
    return OpenedPicture(shown)


def _open_tiff(content: bytes) -> OpenedPicture:
    with _explained(), TiffImagePlugin.TiffImageFile(BytesIO(content)) as image:
        tags = image.tag_v2
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
        white = 1.0 if image.mode == "F" else float((1 << bits) - 1)
        is_negative = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
        bottom = max(tile.extents[3] for tile in image.tile if tile.extents is not None)
        _require_whole(bottom >= tags[TiffImagePlugin.IMAGELENGTH])
        image.load()
    return OpenedPicture(image, image.info.get("icc_profile"), white=white, is_negative=is_negative)


def _open_jpeg_2000(content: bytes) -> OpenedPicture:
    if not content.endswith(_END_OF_CODESTREAM):
        content = content.removesuffix(_END_OF_CODESTREAM[:1]) + _END_OF_CODESTREAM
    return _open_by_pillow("JPEG2000")(content)


def _open_icon(content: bytes) -> OpenedPicture:
    png = inner_png(content)
    if png is not None:
        return _open_png(png)
    with _explained():
        image = IcoFile(BytesIO(content)).frame(best_entry(content)[0])
        image.load()
    return OpenedPicture(image)


def _open_pnm(content: bytes) -> OpenedPicture:
    return OpenedPicture(pnm_image(content))


def _open_heic(content: bytes) -> OpenedPicture:
    return _described(_load(import_module("pi_heif.as_plugin").HeifImageFile, content))


def _open_by_pillow(name: str) -> Callable[[bytes], OpenedPicture]:
    def opened(content: bytes) -> OpenedPicture:
        with _explained(), Image.open(BytesIO(content), formats=(name,)) as image:
            image.load()
        return _described(image)

    return opened


def _described(image: Image.Image) -> OpenedPicture:
    return OpenedPicture(image, image.info.get("icc_profile"), _orientation(image.getexif))


_OPENERS: dict[str, Callable[[bytes], OpenedPicture]] = {
    "JPEG": _open_jpeg,
    "PNG": _open_png,
    "WebP": _open_webp,
    "GIF": _open_gif,
    "BMP": _open_by_pillow("BMP"),
    "TIFF": _open_tiff,
    "AVIF": _open_by_pillow("AVIF"),
    "HEIC": _open_heic,
    "JPEG 2000": _open_jpeg_2000,
    "ICO": _open_icon,
    "PNM": _open_pnm,
}
