"""What a long-lived process keeps is not looked at again; what it makes later is."""

from __future__ import annotations

import subprocess
import sys

KEPT_AND_NEW = """
import gc, time, weakref
from broker_pipeline.process.heap import settle_heap

class Node: pass

def took_s():
    started = time.perf_counter()
    gc.collect()
    return time.perf_counter() - started

kept = [[number] for number in range(500_000)]
before = min(took_s() for _ in range(3))
settle_heap()
assert gc.get_freeze_count() > 500_000
print(before / min(took_s() for _ in range(3)))

cycle = Node(); cycle.self = cycle; gone = weakref.ref(cycle); del cycle
more = [[number] for number in range(50_000)]
assert gone() is None, "of what comes later, cycles are found"
"""


def test_what_is_kept_costs_nothing_later_and_new_cycles_are_found() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT_AND_NEW], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) > 10, "times that a collection took before, of one after"
