import pytest

from broker_pipeline.errors import StaleEpochError
from stages.worker.epoch_fence import EpochFence


def test_higher_epochs_are_adopted_and_lower_ones_refused() -> None:
    fence = EpochFence()
    assert not fence.admit(0)
    assert fence.admit(3)
    assert not fence.admit(3)
    with pytest.raises(StaleEpochError, match="obeys epoch 3"):
        fence.admit(2)
    assert fence.current == 3
