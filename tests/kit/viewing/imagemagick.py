"""ImageMagick as the judge of what a person sees in a picture's file. Debian's package `imagemagick` has it."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

# By a name that nothing else has: `convert` may be another program, or a wrapper that changes what is shown.
PROGRAM = shutil.which("magick") or shutil.which("convert-im6.q16")
needs_imagemagick = pytest.mark.skipif(PROGRAM is None, reason="needs ImageMagick (Debian's imagemagick)")

SIDE = (64, 48)
ORIENTATIONS = ("TopLeft", "TopRight", "BottomRight", "BottomLeft", "LeftTop", "RightTop", "RightBottom", "LeftBottom")


def scene() -> np.ndarray:
    """Colours, brightness and transparency that change everywhere, float64 `[48, 64, 4]` from 0 to 1; no symmetry."""
    width, height = SIDE
    y, x = np.mgrid[0:height, 0:width]
    blue = 0.5 + 0.4 * np.sin(x / 9) * np.cos(y / 7)
    alpha = np.clip((x + y) / (width + height - 40), 0, 1)
    values = np.stack([x / (width - 1), y / (height - 1), blue, alpha], axis=-1)
    values[:8, :16] = (1, 0, 0, 0)
    values[-8:, -16:] = (0.08, 0.24, 0.78, 1)
    return values


def rgba_scene() -> Image.Image:
    """Return the scene in 8 bits."""
    return Image.fromarray(np.rint(scene() * 255).astype(np.uint8))


def on_white(rgba: Image.Image) -> np.ndarray:
    """Return an RGBA image's colours on white, as transformers puts them there."""
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def magick(*arguments: str | Path, given: bytes = b"") -> bytes:
    """Run ImageMagick and return what it writes to its output."""
    done = subprocess.run([str(PROGRAM), *map(str, arguments)], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def write_scene(path: Path, *arguments: str) -> bytes:
    """Write the scene, with 16 bits a sample, by ImageMagick's `arguments`; return the file."""
    samples = np.rint(scene() * 65535).astype(">u2").tobytes()
    size = f"{SIDE[0]}x{SIDE[1]}"
    magick("-size", size, "-depth", "16", "-endian", "MSB", "RGBA:-", *arguments, path, given=samples)
    return path.read_bytes()


def judged(
    content: bytes, ending: str, folder: Path, *, background: str = "white", orientation: int = 1, to_srgb: bool = False
) -> np.ndarray:
    """Return what ImageMagick shows of a file, uint8 `[height, width, 3]`.

    `orientation` is that of a file whose EXIF data it does not read; `to_srgb` has it follow a profile.
    """
    path = folder / f"judged{ending}"
    path.write_bytes(content)
    options: list[str | Path] = ["-orient", ORIENTATIONS[orientation - 1]] if orientation > 1 else []
    if to_srgb:
        profile = folder / "srgb.icc"
        profile.write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        options += ["-profile", profile]
    view = ("-colorspace", "sRGB", "-background", background, "-flatten", "-auto-orient", "-depth", "8", "PNG24:-")
    return np.asarray(Image.open(io.BytesIO(magick(f"{path}[0]", *options, *view))).convert("RGB"))
