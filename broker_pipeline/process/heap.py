"""Python's garbage collector in a service that runs for long and keeps much: looked at once, and left alone.

By default every 700 new objects are looked at, and all objects there are whenever a quarter of them is new: 0.2 s of
standstill in a conductor of 1,024 sessions, more in a process that has imported torch, and a fifth of a conductor's
processor in all (`bench conductor`). What a service has once it is ready, modules above all, stays to its end.
"""

from __future__ import annotations

import gc

_YOUNG = 10_000
"""New objects, those gone again not counted, until the young ones are looked at: about 10 ms."""
_MIDDLE, _OLD = 20, 20


def settle_heap() -> None:
    """Collect once, and never look at what is left again; look at what comes less often.

    Nothing else of the process runs meanwhile, for up to half a second: services do it before they take a name, a lease
    or a request.
    """
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    gc.collect()
    gc.freeze()
