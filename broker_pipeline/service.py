"""The life of every service: start, ready, SIGTERM drains, the deadline cancels, an exit code says how it ended.

start ──► main(context) ──► context.ready() ──► … ──► first signal: `context.stopping` is set; main drains
          ▲      │                                      │
          └──────┘ NATS or Redis is not there yet       │
                                                        ├── main returns in time             exit 0
                                                        ├── `drain_s` passes: main cancelled, exit 0 with a warning
                                                        └── second signal: main cancelled    exit 130
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
import uvloop

from broker_pipeline import __version__, exit_codes
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import PipelineError
from broker_pipeline.logs import configure_logs
from broker_pipeline.process.end_signals import end_signals
from broker_pipeline.process.host_room import LEAST, Needs, say_shortages
from broker_pipeline.security.certificate_watch import watched_certificates
from broker_pipeline.tracing.trace_export import open_traces
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.nats.server_certificate import server_certificate_end

log = structlog.get_logger()

_SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep Python to itself while the event loop waits for it: profiles showed messages that waited
for the default of 5 ms whenever a compute thread had begun with the next microbatch."""

_START_PATIENCE_S = 10.0
"""How long after its start a service still tries again when servers are not there: they may be starting as well."""
_START_PAUSE_S = 0.5

ServiceMain = Callable[["ServiceContext"], Awaitable[None]]


class ServiceContext:
    """What a running service sees of its own life."""

    def __init__(self, name: str, settings: CommonSettings) -> None:
        self.name = name
        self.settings = settings
        self.stopping = asyncio.Event()
        """Set when the service shall refuse new work, finish what it has, and return."""
        self.is_ready = False
        self._num_signals = 0
        self._started = time.monotonic()

    def ready(self, **facts: object) -> None:
        """Say that the service takes work; `facts` go into the log line and the ready file."""
        self.is_ready = True
        tracer.name_process(str(facts.get("worker", self.name)))
        log.info("service_ready", start_s=round(time.monotonic() - self._started, 3), **facts)
        if self.settings.ready_file:
            lines = [f"{key}={value}\n" for key, value in facts.items()]
            _write_atomically(Path(self.settings.ready_file), "".join(lines))

    def stop(self) -> None:
        """Ask the service to drain and return, as a signal would."""
        self.stopping.set()

    def on_signal(self, number: int, task: asyncio.Task[None]) -> None:
        """Drain at the first signal, cancel `task` at the second; what is cancelled already tidies up until a third."""
        self._num_signals += 1
        log.info("signal_received", signal=signal.Signals(number).name, count=self._num_signals)
        self.stopping.set()
        if self._num_signals > 1 and (self._num_signals > 2 or not task.cancelling()):
            task.cancel()

    @property
    def was_forced(self) -> bool:
        """Whether a second signal asked for an end without draining."""
        return self._num_signals > 1


def run(name: str, main: ServiceMain, settings: CommonSettings, needs: Needs = LEAST) -> int:
    """Run a service to its end and return the exit code; says first what of its `needs` the host lacks."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    configure_logs(
        name, log_format=settings.log_format, level=settings.log_level, has_traces=bool(settings.otlp_endpoint)
    )
    if settings.otlp_endpoint:
        tracer.trace_jobs(open_traces(settings.otlp_endpoint, name, settings.namespace))
    if settings.profile is not None:
        tracer.start(Path(settings.profile), name, max_events=settings.profile_max_events)
    say_shortages(needs)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_live(name, main, settings))
    finally:
        tracer.trace_jobs(None)
        tracer.stop()


def run_and_exit(name: str, main: ServiceMain, settings: CommonSettings, needs: Needs = LEAST) -> None:
    """Run a service and end the process with its exit code."""
    sys.exit(run(name, main, settings, needs))


async def _live(name: str, main: ServiceMain, settings: CommonSettings) -> int:
    context = ServiceContext(name, settings)
    task = asyncio.ensure_future(_run_main(main, context))
    loop = asyncio.get_running_loop()
    for number in end_signals():
        loop.add_signal_handler(number, context.on_signal, number, task)
    log.info("service_starting", version=__version__, namespace=settings.namespace, pipeline=settings.pipeline)
    deadline = asyncio.ensure_future(_cancel_after_drain(context, task))
    try:
        await asyncio.wait({task})
    finally:
        deadline.cancel()
        await asyncio.wait({deadline})
    return _exit_code(context, task)


async def _run_main(main: ServiceMain, context: ServiceContext) -> None:
    """Run `main`, and run it again while servers are not there yet."""
    settings = context.settings
    async with watched_certificates(settings.secrets, partial(server_certificate_end, settings.nats_url)):
        await _try_main(main, context)


async def _try_main(main: ServiceMain, context: ServiceContext) -> None:
    give_up_at = time.monotonic() + _START_PATIENCE_S
    while not context.stopping.is_set():
        try:
            return await main(context)
        except (PipelineError, BaseExceptionGroup) as error:
            is_early = not context.is_ready and time.monotonic() < give_up_at
            if not is_early or exit_codes.exit_code_of(error) != exit_codes.UNAVAILABLE:
                raise
            log.warning("start_repeated", reason=str(exit_codes.first_pipeline_error(error)), pause_s=_START_PAUSE_S)
        with suppress(TimeoutError):
            await asyncio.wait_for(context.stopping.wait(), _START_PAUSE_S)
    return None


async def _cancel_after_drain(context: ServiceContext, task: asyncio.Task[None]) -> None:
    await context.stopping.wait()
    await asyncio.sleep(context.settings.drain_s)
    log.warning("drain_deadline_passed", drain_s=context.settings.drain_s)
    if not task.cancelling():
        task.cancel()


def _exit_code(context: ServiceContext, task: asyncio.Task[None]) -> int:
    if task.cancelled():
        log.warning("service_cut_short")
        return exit_codes.INTERRUPTED if context.was_forced else exit_codes.OK
    error = task.exception()
    if error is None:
        log.info("service_stopped")
        return exit_codes.OK
    known = exit_codes.first_pipeline_error(error)
    if known is not None:
        log.error("service_failed", code=known.code, message=known.message, field=known.field)
    else:
        log.error("service_crashed", exc_info=error)
    return exit_codes.exit_code_of(error)


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
