import pytest

from trials.bench.pipeline.gpu_watch import parse_sample


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("97, 612.31, 65321\n", (97.0, 612.31, 65321.0)),
        ("97, [N/A], 65321\n", None),
        ("NVIDIA-SMI has failed", None),
        ("", None),
    ],
)
def test_a_line_of_the_driver_is_read_or_left_out(line: str, sample: tuple[float, float, float] | None) -> None:
    assert parse_sample(line) == sample
