"""The command `broker-pipeline soak`: jobs with known answers, faults at random, and proof that nothing was lost."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from broker_pipeline import exit_codes
from broker_pipeline.config import PathType, option
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.logs import log_errors_only
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.signals import until_interrupted
from trials.bench.report import save
from trials.directories import fresh_directory
from trials.soak.faults.clocks import require_clocks
from trials.soak.faults.network import require_network
from trials.soak.faults.plan import FAULT_KINDS, FaultKind, parse_kinds
from trials.soak.faults.shared_memory import require_shared_memory
from trials.soak.overload import QUEUE_JOBS, Overload, OverloadSettings
from trials.soak.recovery.drill import KINDS, RecoveryDrill, RecoverySettings
from trials.soak.recovery.report import recovery_tables
from trials.soak.report import soak_tables
from trials.soak.report_overload import overload_tables
from trials.soak.run import Soak, SoakSettings
from trials.soak.system import components, random_model, soak_system

_POSITIVE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)
_WIDTH = 120
REQUIRED: Mapping[str, Callable[[], None]] = {
    "partition": require_network,
    "clock": require_clocks,
    "shm": require_shared_memory,
}
"""Raises `ConfigurationError` where a kind of fault cannot be made."""


@click.command()
@option("--jobs", default=200, type=_POSITIVE, help="Jobs to submit; the right answer of each is computed beforehand.")
@option(
    "--faults",
    default="kill,stop,restart",
    help=f"Kinds, of {', '.join(FAULT_KINDS)}; all of them with all, none with ''. partition and shm need root, "
    "clock needs libfaketime.",
)
@option("--seed", default=0, type=int, help="Decides jobs, faults and their order.")
@option("--fault-every-s", default=5.0, type=_SECONDS, help="Seconds from one fault to the next, on average.")
@option(
    "--num-faults",
    default=0,
    type=click.IntRange(min=0),
    help="Least number of faults; the jobs are spread over their time.",
)
@option(
    "--together",
    default=0.0,
    type=click.FloatRange(min=0, max=0.9),
    help="Share of the faults that come together with the one before.",
)
@option("--targets", help="Components that faults may hit, such as stage-0,nats.  [default: all]")
@option(
    "--model",
    type=PathType(path_type=Path, file_okay=False, exists=True),
    help="Artifact to run; float32 is best.  [default: a small model of random weights]",
)
@option("--stages", default=3, type=_POSITIVE, help="Number of stages.")
@option("--spares", default=2, type=click.IntRange(min=0), help="Stages that have a second worker.")
@option(
    "--shares",
    is_flag=True,
    help="Both conductors work, each with a copy of the model: needs as many spares as stages.",
)
@option("--concurrency", default=32, type=_POSITIVE, help="Jobs in flight at a time.")
@option("--device", default="cpu", help="Device of every worker.")
@option(
    "--deterministic",
    is_flag=True,
    help="Workers and the right answers are computed batch-invariantly on that device, so that every answer has to be "
    "equal to the byte, also where rounding might choose between two tokens.",
)
@option(
    "--recovery",
    type=_POSITIVE,
    metavar="FAULTS",
    help="Instead: hit each component so often, one fault after the other, and measure how long streams stand still.",
)
@option(
    "--overload",
    type=click.FloatRange(min=1, min_open=True),
    metavar="FACTOR",
    help="Instead: submit FACTOR times faster than the pipeline runs, and watch memory.",
)
@option("--overload-s", default=60.0, type=_SECONDS, help="Seconds of overload.")
@option(
    "--out",
    type=PathType(path_type=Path, dir_okay=False),
    help="Report as JSON; of an overload, also memory as CSV alongside it.",
)
@option(
    "--data-dir",
    type=PathType(path_type=Path, file_okay=False),
    help="Where logs and servers' files are kept.  [default: a temporary directory]",
)
def command(**options: Any) -> None:
    """Try to make a pipeline lose something.

    Brings up a whole pipeline on this machine with two gateways, a standby conductor and spare workers; submits jobs
    whose right answers were computed without it; kills, hangs, restarts, slows, sickens and cuts off components at
    random times, and spoils what servers hold; and then proves that every accepted job has exactly one result, that
    each is right token for token, and that no process, session, KV, queued job or picture is left. Exit code 0 when all
    of that is proven, 1 when not.

    \b
    Examples:
      broker-pipeline soak --jobs 200 --faults kill,stop,restart --seed 7
      broker-pipeline soak --jobs 3000 --num-faults 150 --faults all --together 0.3 --out report.json
      broker-pipeline soak --overload 5 --overload-s 600 --out overload.json
      broker-pipeline soak --recovery 30 --out recovery.json
    """
    say = _Teller()
    # What the soak's own connections meet during a fault is no news.
    log_errors_only()
    with raising_first_error():
        code = asyncio.run(until_interrupted(_soak(options, say)))
    if code is None:
        say("interrupted; everything is stopped")
    sys.exit(exit_codes.INTERRUPTED if code is None else code)


class _Teller:
    """Prints what happens, with the seconds since the start."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        passed_s = time.monotonic() - self._started
        self.console.print(f"{passed_s:6.1f} s  {line}", markup=False, soft_wrap=True)


async def _soak(options: dict[str, Any], say: _Teller) -> int:
    kinds = parse_kinds(options["faults"])
    if options["overload"] is None and options["recovery"] is None:
        for kind in kinds:
            REQUIRED.get(kind, lambda: None)()
    with fresh_directory(options["data_dir"], "data_dir") as directory:
        model = options["model"]
        if model is None:
            say("making a small model of random weights")
            model = await random_model(directory / "model")
        system = _system(options, model, directory)
        if options["recovery"] is not None:
            is_proven = await _run_recovery(options, system, say)
        elif options["overload"] is not None:
            is_proven = await _run_overload(options, system, say)
        else:
            is_proven = await _run_soak(options, system, kinds, say)
        if is_proven:
            return exit_codes.OK
        kept = directory if options["data_dir"] else "a temporary directory; name one with --data-dir to keep them"
        say(f"not proven; logs were in {kept}")
        return exit_codes.SOME_FAILED


def _system(options: dict[str, Any], model: Path, directory: Path) -> LocalSettings:
    limits = {"gateway": ("--max-queued-jobs", str(QUEUE_JOBS))} if options["overload"] is not None else {}
    return soak_system(
        model,
        directory / "run",
        num_stages=options["stages"],
        num_spares=options["spares"],
        has_shares=options["shares"],
        device=options["device"],
        is_deterministic=options["deterministic"],
        extra_arguments=limits,
    )


async def _run_soak(options: dict[str, Any], system: LocalSettings, kinds: tuple[FaultKind, ...], say: _Teller) -> bool:
    settings = SoakSettings(
        num_jobs=options["jobs"],
        kinds=kinds,
        seed=options["seed"],
        fault_every_s=options["fault_every_s"],
        num_faults=options["num_faults"] if kinds else 0,
        together=options["together"],
        num_in_flight=options["concurrency"],
        targets=_targets(options["targets"], components(system)),
    )
    report = await Soak(system, settings, say).run()
    save(report, options["out"])
    say.console.print(soak_tables(report))
    return report.is_proven


async def _run_overload(options: dict[str, Any], system: LocalSettings, say: _Teller) -> bool:
    settings = OverloadSettings(factor=options["overload"], duration_s=options["overload_s"], seed=options["seed"])
    overload = Overload(system, settings, say)
    report = await overload.run()
    out: Path | None = options["out"]
    save(report, out)
    if out is not None:
        overload.memory.write_csv(out.with_suffix(".csv"))
    say.console.print(overload_tables(report))
    return report.is_proven


async def _run_recovery(options: dict[str, Any], system: LocalSettings, say: _Teller) -> bool:
    settings = RecoverySettings(num_faults=options["recovery"], components=_recovered(options["targets"]))
    report = await RecoveryDrill(system, settings, say).run()
    save(report, options["out"])
    say.console.print(recovery_tables(report))
    return not report.problems


def _recovered(text: str | None) -> tuple[str, ...]:
    names = tuple(KINDS) if text is None else tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in KINDS]:
        raise ConfigurationError(f"--targets {unknown[0]}: with --recovery one of {', '.join(KINDS)}", field="targets")
    return names


def _targets(text: str | None, known: tuple[str, ...]) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigurationError(f"--targets {text}: the components are {', '.join(known)}", field="targets")
    return names
