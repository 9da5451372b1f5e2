"""Every kind of PNG is seen as ImageMagick shows it."""

from __future__ import annotations

import pytest

from tests.kit.viewing.imagemagick import judged, needs_imagemagick, on_white, rgba_scene
from tests.kit.viewing.png_files import COLOUR_ALPHA, PngKind, all_kinds, png_file
from tests.kit.viewing.seen import require_like, seen


@needs_imagemagick
@pytest.mark.parametrize("kind", [*all_kinds()], ids=str)
def test_a_kind_is_seen_as_the_judge_shows_it(kind, tmp_path):
    content = png_file(kind, rgba_scene())
    require_like(seen(content), judged(content, ".png", tmp_path))


@pytest.mark.parametrize("depth", [8, 16])
def test_alpha_is_put_on_white_as_transformers_does(depth):
    content = png_file(PngKind(COLOUR_ALPHA, depth, False, False), rgba_scene())
    require_like(seen(content), on_white(rgba_scene()), most=1)
