"""Runs schedules, one a seed.

python -m tests.simulation -n 100000 -j 2                            many, on two cores
python -m tests.simulation --for 500 -j 28 --keep-going --receipt F  as many as there is time for, and what came of it
python -m tests.simulation --seed 7 --log                            one, with everything that is logged
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import warnings
from pathlib import Path

import structlog

from broker_pipeline.tools.machine import MachineFacts
from tests.kit.receipts import write_receipt
from tests.simulation.campaign import Campaign
from tests.simulation.simulate import simulate

_NO_END = 10**12


def main() -> int:
    options = _options()
    _prepare(is_quiet=not options.log)
    num = options.n or (1 if options.for_s is None else _NO_END)
    if num == 1:
        verdict = simulate(options.seed)
        print(verdict)
        return int(bool(verdict.problems))
    machine = MachineFacts.read()
    campaign = Campaign(
        options.seed,
        num,
        options.j,
        for_s=float("inf") if options.for_s is None else options.for_s,
        keeps_going=options.keep_going,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    campaign.run()
    print(campaign, flush=True)
    write_receipt(options.receipt, {"machine": machine, **campaign.seen()})
    return int(not campaign.is_good)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-n", type=int, help="schedules to run at most; 1, or without end where --for is given")
    parser.add_argument("-j", type=int, default=1, help="processes to run them in")
    parser.add_argument("--for", type=float, dest="for_s", metavar="SECONDS", help="start none after that time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first; the others follow it")
    parser.add_argument("--log", action="store_true", help="show what conductors log")
    parser.add_argument("--keep-going", action="store_true", help="do not end with the first failure")
    parser.add_argument("--receipt", type=Path, help="file for what came of it, as JSON")
    return parser.parse_args()


def _prepare(*, is_quiet: bool) -> None:
    if is_quiet:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=True)
    warnings.simplefilter("error")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.disable()  # what a schedule leaves is collected every so often
    gc.collect()
    gc.freeze()  # and all that is imported is not looked at again


if __name__ == "__main__":
    sys.exit(main())
