"""Runs schedules, one a seed.

python -m tests.simulation -n 100000             many
python -m tests.simulation --seed 7 --log        one, with everything that is logged
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings

import structlog

from tests.simulation.simulate import simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-n", type=int, default=1, help="schedules to run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first; the others follow it")
    parser.add_argument("--log", action="store_true", help="show what conductors log")
    parser.add_argument("--keep-going", action="store_true", help="do not end with the first failure")
    options = parser.parse_args()
    if not options.log:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    warnings.simplefilter("error")
    gc.disable()  # a collection looks at all that is imported; what a schedule leaves is collected every so often
    started, num_failed, simulated_s, num_faults = time.process_time(), 0, 0.0, 0
    for seed in range(options.seed, options.seed + options.n):
        verdict = simulate(seed)
        if seed % 50 == 0:
            gc.collect()
        if seed % 1000 == 0:
            print(f"at seed {seed}, {num_failed} failed, {time.process_time():.0f} s of processor", file=sys.stderr)
        simulated_s += verdict.took_s
        num_faults += len(verdict.schedule.faults)
        if verdict.problems or options.n == 1:
            print(verdict, flush=True)
        num_failed += bool(verdict.problems)
        if num_failed and not options.keep_going:
            break
    took_s = time.process_time() - started
    num = seed - options.seed + 1
    print(f"{num} schedules, {num_faults} faults, {simulated_s / 3600:.1f} simulated hours: {num_failed} failed")
    print(f"{took_s:.1f} s of processor, {1000 * took_s / num:.1f} ms a schedule")
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
