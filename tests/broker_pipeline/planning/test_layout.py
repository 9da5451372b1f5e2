import pytest

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.layout import Layout, LayoutRequest, chain_of, parse_layout


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("auto", LayoutRequest()),
        ("copies=4", LayoutRequest(num_copies=4, num_stages=1)),
        ("stages=4", LayoutRequest(num_copies=1, num_stages=4)),
        (" copies = 2 , stages=3", LayoutRequest(num_copies=2, num_stages=3)),
    ],
)
def test_what_can_be_asked_for(text: str, request_: LayoutRequest) -> None:
    assert parse_layout(text) == request_


@pytest.mark.parametrize(
    "text", ["", "4", "copies", "copies=0", "copies=-1", "copies=1,copies=2", "stages=x", "stages=²", "auto,"]
)
def test_anything_else_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--layout") as caught:
        parse_layout(text)
    assert caught.value.field == "layout"


def test_stages_follow_copy_by_copy_and_vision_is_with_the_first_or_with_all() -> None:
    chains = (chain_of([2, 4]), chain_of([3, 3]))
    first, every = (Layout(chains=chains, vision=place) for place in ("shared", "every"))
    assert [(blocks.start, blocks.stop) for blocks in first.stages] == [(0, 2), (2, 6), (0, 3), (3, 6)]
    assert first.vision_stages == (0, 2)
    assert every.vision_stages == (0, 1, 2, 3)
    assert Layout(chains=chains, vision="separate", num_vision_workers=1).vision_stages == ()


def test_a_layout_says_what_it_is() -> None:
    assert str(Layout(chains=(chain_of([6]),) * 4, vision="shared")) == "4 copies, each whole"
    assert str(Layout(chains=(chain_of([2, 4]),), vision="shared")) == "1 copy, in 2 stages, blocks 0:2 2:6"
