"""How long a fault kept a stream from moving. Pure.

tokens   t  t │ t            t  t          the one that was under way at the fault still comes
         fault┘ └─ stood still ┘
server        │      back ┐  │
                     └────┴──┘             of a server, what its clients need after its return counts
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def stood_still_s(token_times: Sequence[float], at: float, until: float, back_at: float | None = None) -> float:
    """Return the longest time without a token after `at`, in seconds, of a stream that had not ended then.

    `until` bounds what is looked at: the pause that lasts then is the last one. With `back_at` only the part of each
    pause after it counts.
    """
    seen = [at, *(each for each in token_times if at < each < until)]
    later = [each for each in token_times if each >= until]
    seen += later[:1]
    since = at if back_at is None else back_at
    return max((max(0.0, after - max(before, since)) for before, after in pairwise(seen)), default=0.0)
