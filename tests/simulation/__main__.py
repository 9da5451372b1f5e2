"""Runs schedules, one a seed.

python -m tests.simulation -n 100000 -j 2        many, on two cores
python -m tests.simulation --seed 7 --log        one, with everything that is logged
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from tests.simulation.simulate import simulate

_BLOCK = 100
_COLLECT_EVERY = 10
_TELL_EVERY = 10


@dataclass(frozen=True, slots=True)
class _Block:
    """What some schedules came to."""

    num: int
    num_faults: int
    simulated_s: float
    processor_s: float
    failures: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-n", type=int, default=1, help="schedules to run")
    parser.add_argument("-j", type=int, default=1, help="processes to run them in")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first; the others follow it")
    parser.add_argument("--log", action="store_true", help="show what conductors log")
    parser.add_argument("--keep-going", action="store_true", help="do not end with the first failure")
    options = parser.parse_args()
    _prepare(is_quiet=not options.log)
    if options.n == 1:
        verdict = simulate(options.seed)
        print(verdict)
        return int(bool(verdict.problems))
    stop = options.seed + options.n
    blocks = [range(first, min(first + _BLOCK, stop)) for first in range(options.seed, stop, _BLOCK)]
    return _run(blocks, options.j, keep_going=options.keep_going)


def _prepare(*, is_quiet: bool) -> None:
    if is_quiet:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    warnings.simplefilter("error")
    gc.disable()  # what a schedule leaves is collected every so often
    gc.collect()
    gc.freeze()  # and all that is imported is not looked at again


def _run(blocks: list[range], num_processes: int, *, keep_going: bool) -> int:
    began, done = time.monotonic(), []
    for block in _done(blocks, num_processes):
        done.append(block)
        for failure in block.failures:
            print(failure, flush=True)
        if block.failures and not keep_going:
            break
        if len(done) % _TELL_EVERY == 0:
            print(_summary(done, time.monotonic() - began), file=sys.stderr)
    print(_summary(done, time.monotonic() - began))
    return int(any(block.failures for block in done))


def _done(blocks: list[range], num_processes: int) -> Iterator[_Block]:
    if num_processes == 1:
        yield from map(_simulate, blocks)
        return
    with multiprocessing.Pool(num_processes) as pool:
        yield from pool.imap_unordered(_simulate, blocks)


def _simulate(seeds: range) -> _Block:
    began, num_faults, simulated_s, failures = time.process_time(), 0, 0.0, []
    for seed in seeds:
        verdict = simulate(seed)
        num_faults += len(verdict.schedule.faults)
        simulated_s += verdict.took_s
        if verdict.problems:
            failures.append(str(verdict))
        if seed % _COLLECT_EVERY == 0:
            gc.collect()
    return _Block(len(seeds), num_faults, simulated_s, time.process_time() - began, tuple(failures))


def _summary(done: list[_Block], took_s: float) -> str:
    num, processor_s = sum(block.num for block in done), sum(block.processor_s for block in done)
    return (
        f"{num} schedules, {sum(block.num_faults for block in done)} faults, "
        f"{sum(block.simulated_s for block in done) / 3600:.1f} simulated hours: "
        f"{sum(len(block.failures) for block in done)} failed; "
        f"{took_s:.0f} s, {1000 * processor_s / num:.1f} ms of processor a schedule"
    )


if __name__ == "__main__":
    sys.exit(main())
