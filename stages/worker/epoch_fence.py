"""Which conductor a worker obeys: the one with the highest epoch it has heard of."""

from __future__ import annotations

from broker_pipeline.errors import StaleEpochError


class EpochFence:
    """Remembers the highest epoch. A conductor that lost its lease speaks with a lower one and is refused."""

    def __init__(self) -> None:
        self.current = 0

    def admit(self, epoch: int) -> bool:
        """Adopt a higher epoch and say whether that happened; sessions of older ones are void then.

        Raises:
            StaleEpochError: the sender's epoch is over.
        """
        if epoch < self.current:
            raise StaleEpochError(
                f"epoch {epoch} is over: this worker obeys epoch {self.current}; another conductor has taken over",
                field="epoch",
            )
        is_higher = epoch > self.current
        self.current = epoch
        return is_higher
