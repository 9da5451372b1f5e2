import pytest

from broker_pipeline.artifact_files.block_range import parse_block_range
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.workers import BlockRange


@pytest.mark.parametrize(
    ("text", "start", "stop"), [("0:2", 0, 2), ("2:", 2, 6), (":3", 0, 3), (":", 0, 6), (" 5:6 ", 5, 6)]
)
def test_ranges_as_people_write_them(text: str, start: int, stop: int) -> None:
    assert parse_block_range(text, 6) == BlockRange(start=start, stop=stop)


@pytest.mark.parametrize("text", ["", "2", "2-4", "a:b", "-1:2", "3:3", "4:2", "0:7", "6:"])
def test_other_forms_say_what_to_write(text: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_block_range(text, 6)
    assert refusal.value.field == "blocks"
