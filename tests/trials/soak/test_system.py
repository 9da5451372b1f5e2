from pathlib import Path

import pytest

from broker_pipeline.errors import ConfigurationError
from tests.kit.models.tiny_artifacts import tiny_artifact
from trials.soak.system import soak_system


def test_with_shares_each_is_a_whole_model(tmp_path: Path) -> None:
    system = soak_system(tiny_artifact(), tmp_path, num_stages=2, num_spares=2, has_shares=True)
    bounds = [(blocks.start, blocks.stop) for blocks in system.stages]
    assert system.shares == ("0", "0", "1", "1")
    assert sorted(bounds[:2]) == sorted(bounds[2:])
    assert soak_system(tiny_artifact(), tmp_path, num_stages=2, num_spares=2).shares == ()
    with pytest.raises(ConfigurationError, match="--spares 3"):
        soak_system(tiny_artifact(), tmp_path, num_stages=3, num_spares=2, has_shares=True)
