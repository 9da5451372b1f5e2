"""What one way did with one size of payload."""

from __future__ import annotations

import msgspec

BESIDE_WINDOW = 2
"""Large payloads under way while small ones are timed."""
BESIDE_PAUSE_S = 0.005
"""Between those: a decode step comes when the one before has been computed."""


class Sample(msgspec.Struct, frozen=True):
    """Seconds and a rate."""

    trips_s: list[float]
    """There, and a few bytes back."""
    bytes_per_s: float
    """With several under way; of the large payloads, where small ones were timed beside them."""
