from pathlib import Path

import pytest

from broker_pipeline.errors import ArtifactMissingError, ConfigurationError
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.local.cuts import balanced_cut, parse_cut


def ranges(*pairs: tuple[int, int]) -> tuple[BlockRange, ...]:
    return tuple(BlockRange(start=start, stop=stop) for start, stop in pairs)


def test_a_cut_names_the_first_layer_of_every_stage_but_the_first() -> None:
    assert parse_cut("2,10", 28) == ranges((0, 2), (2, 10), (10, 28))
    assert parse_cut(" 1 , 2 ", 3) == ranges((0, 1), (1, 2), (2, 3))
    assert parse_cut("", 3) == ranges((0, 3))


@pytest.mark.parametrize("text", ["0", "28", "29", "2,2", "10,2", "-1", "2,", "a", "2;3", "2.5"])
def test_wrong_cuts_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_cut(text, 28)
    assert caught.value.field == "cut"


def test_an_empty_directory_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        balanced_cut(tmp_path, 2)
