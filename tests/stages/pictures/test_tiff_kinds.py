"""Every kind of TIFF that Pillow says that it opens is seen as ImageMagick shows it, or refused by its name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from broker_pipeline.errors import UnsupportedImageError
from broker_pipeline.pictures.header import read_header
from tests.kit.viewing.imagemagick import judged, needs_imagemagick, on_white, rgba_scene
from tests.kit.viewing.seen import require_like, seen
from tests.kit.viewing.tiff_files import TiffKind, all_kinds, tiff_file

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # as in a process, see pictures.pillow_headers
KINDS = list(all_kinds())


def is_refused(kind: TiffKind) -> bool:
    """Signed samples have no black that people agree on; and Pillow's decoder lacks some of the reversed bits."""
    is_reversed_kind = (kind.photometric == 3 and kind.bits[0] < 8) or (kind.photometric, kind.bits) == (0, (8,))
    return kind.sample_format == 2 or (kind.fill_order == 2 and is_reversed_kind)


def is_misjudged(kind: TiffKind) -> bool:
    """ImageMagick 6 forgets in some depths that white is 0, any extra sample for alpha, Lab's white for D65."""
    is_forgotten = kind.photometric == 0 and (kind.bits[0] in {2, 4} or kind.sample_format == 3)
    is_grey_ycbcr = kind.photometric == 6 and len(kind.bits) == 1
    return is_forgotten or 0 in kind.extras[:1] or kind.photometric == 8 or is_grey_ycbcr


@needs_imagemagick
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not is_refused(kind) and not is_misjudged(kind)], ids=str)
def test_a_kind_is_seen_as_the_judge_shows_it(kind, tmp_path):
    content = tiff_file(kind, rgba_scene())
    require_like(seen(content), judged(content, ".tif", tmp_path))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_misjudged(kind) and not is_refused(kind)], ids=str)
def test_what_the_judge_misreads_is_seen_as_it_was_written(kind):
    rgb = rgba_scene().convert("RGB")
    if kind.photometric in {0, 1, 6}:
        rgb = rgb.convert("L").convert("RGB")
    if kind.photometric == 3:
        rgb = rgb.quantize(256, dither=Image.Dither.NONE).convert("RGB")
    rounding = 255 / ((1 << min(8, kind.bits[0])) - 1) / 2
    is_lab = kind.photometric == 8  # whose 8 bits are coarse where colours are strong
    require_like(seen(tiff_file(kind, rgba_scene())), np.asarray(rgb), most=32 if is_lab else rounding + 1, mean=50)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_refused(kind)], ids=str)
def test_a_kind_that_is_not_decoded_is_refused_by_its_name(kind):
    with pytest.raises(UnsupportedImageError, match=rf"a TIFF with bits .*\({kind.bits[0]},\).* is not decoded here"):
        read_header(tiff_file(kind, rgba_scene()))


def test_premultiplied_colours_are_put_on_white_once():
    [kind] = [k for k in KINDS if str(k) == "II-photo2-sf1-fill1-8x8x8x8-extra1"]
    require_like(seen(tiff_file(kind, rgba_scene())), on_white(rgba_scene()), most=2)


@pytest.mark.parametrize("bits", [(16, 16, 16), (32, 32, 32), (12, 12, 12)])
def test_kinds_outside_of_the_table_are_refused_by_their_name(bits):
    kind = TiffKind(b"II", 1, 1, 1, bits, (2, 2))
    with pytest.raises(UnsupportedImageError, match="a TIFF with bits"):
        read_header(tiff_file(kind, rgba_scene()))
