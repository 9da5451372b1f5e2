"""Colours as people write them on the command line."""

import click
import pytest

from broker_pipeline.pictures.colour import read_colour


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("white", (255, 255, 255)),
        ("#808080", (128, 128, 128)),
        ("#fff", (255, 255, 255)),
        ("rgb(1, 2, 3)", (1, 2, 3)),
        ("#010203ff", (1, 2, 3)),
    ],
)
def test_a_colour_is_read(text: str, colour: tuple[int, int, int]) -> None:
    assert read_colour(None, None, text) == colour


@pytest.mark.parametrize("text", ["", "whitish", "#12", "#01020300"])
def test_what_is_no_colour_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is no colour|is transparent itself"):
        read_colour(None, None, text)
