"""Braces in paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_pipeline.captioning.sources.braces import expanded
from broker_pipeline.captioning.sources.open import open_sources
from broker_pipeline.errors import ConfigurationError, InvalidRequestError
from tests.kit.pictures import picture


def test_braces_stand_for_paths_and_urls_in_order() -> None:
    assert expanded("https://a.b/s-{008..010}.tar") == [f"https://a.b/s-{n}.tar" for n in ("008", "009", "010")]
    assert expanded("{b,a}/{1..2}") == ["b/1", "b/2", "a/1", "a/2"]
    assert expanded("plain.tar") == ["plain.tar"]


def test_what_is_there_as_it_is_named_is_itself(tmp_path: Path) -> None:
    odd = tmp_path / "{a,b}.png"
    odd.write_bytes(picture(1))
    assert expanded(str(odd)) == [str(odd)]


@pytest.mark.parametrize("path", ["s-{1..2.tar", "s-{1..9999999}.tar"])
def test_braces_that_stand_for_nothing_usable(path: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        expanded(path)
    assert refused.value.field == "PATHS"


def test_each_path_is_opened(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture(1))
    assert [item.id for item in open_sources([f"{tmp_path}/{{b,a}}"])] == [
        f"{tmp_path}/b/1.png",
        f"{tmp_path}/a/1.png",
    ]
    with pytest.raises(ConfigurationError, match="/c does not exist"):
        open_sources([f"{tmp_path}/{{a,c}}"])


def test_wildcards_stand_for_what_fits_them(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.jpg", "a/.3.png", "b/c/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(1))

    def names(pattern: str) -> list[str]:
        return [item.id.removeprefix(f"{tmp_path}/") for item in open_sources([f"{tmp_path}/{pattern}"])]

    assert names("a/*.png") == ["a/1.png"]
    assert names("**/*.png") == ["a/1.png", "b/c/4.png"]
    assert names("{b,a}/") == ["b/c/4.png", "a/1.png", "a/2.jpg"]
    assert names("[b-z]") == ["b/c/4.png"]
    with pytest.raises(ConfigurationError, match="does not exist, and nothing fits it as a pattern"):
        names("a/*.gif")
    (tmp_path / "a" / "[1].png").write_bytes(picture(2))
    assert names("a/[1].png") == ["a/[1].png"]
