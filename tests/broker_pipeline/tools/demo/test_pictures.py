import json
from pathlib import Path

import pytest
from PIL import Image

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.demo.pictures import photographs, scenes


def test_photographs_are_real_pictures_that_scikit_image_ships() -> None:
    found = photographs()
    assert len(found) == 6
    for picture in found:
        with Image.open(picture.path) as image:
            assert min(image.size) >= 256
        assert picture.expected is None


def test_scenes_have_files_and_expected_captions(tmp_path: Path) -> None:
    (tmp_path / "scenes.json").write_text(json.dumps([{"name": "one.png", "caption": "A cat."}]))
    with pytest.raises(ConfigurationError, match=r"names one\.png, which is not there"):
        scenes(tmp_path)
    (tmp_path / "one.png").touch()
    found = [(scene.name, scene.path, scene.expected) for scene in scenes(tmp_path)]
    assert found == [("one", tmp_path / "one.png", "A cat.")]


def test_a_listing_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"scenes\.json"):
        scenes(tmp_path)
    (tmp_path / "scenes.json").write_text('[{"name": 3}]')
    with pytest.raises(ConfigurationError, match=r"scenes\.json"):
        scenes(tmp_path)
