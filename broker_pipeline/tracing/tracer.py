"""Records what this process does, where it is told to: `--profile DIR`; what it does for jobs goes to `JobTraces` too.

    tracer.span(STEP, started, microbatch=7) ──► deque ──► thread, twice a second ──► DIR/stage-HOST-PID.json
       off: returns at once                      (at most max_events in all)

There is one tracer to a process, like its log; code anywhere records with two lines:

    started = tracer.now()
    …
    tracer.span(PLAN, started, num_tokens=n)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tracing.activities import Activity
from broker_pipeline.tracing.event_writer import EventWriter, Recorded, open_writer
from broker_pipeline.tracing.events import Fact
from broker_pipeline.tracing.job_traces import JobTraces

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

_FLUSH_S = 0.5
_STOP_S = 5.0
_NOTHING = nullcontext()


class Tracer:
    """The spans of this process. Safe to use from every thread."""

    def __init__(self) -> None:
        """Record nothing yet."""
        self.is_on = False
        """Whether a profile is recorded."""
        self._job_traces: JobTraces | None = None
        self._recorded: deque[Recorded] = deque()
        self._threads: dict[int, str] = {}
        self._num_left = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._writer: EventWriter | None = None

    # --- recording --------------------------------------------------------------------------------------------------

    now = staticmethod(time.monotonic_ns)
    """The clock of all spans, in nanoseconds."""

    def span(self, activity: Activity, start_ns: int, stop_ns: int | None = None, /, **facts: Fact) -> None:
        """Record that something went on from `start_ns` to `stop_ns` (now) of the monotonic clock.

        `facts` are shown with it; `microbatch` with `epoch`, or `session` with `attempt`, say what it was done for.
        """
        if not self.is_on and self._job_traces is None:
            return
        stop = time.monotonic_ns() if stop_ns is None else stop_ns
        if self._job_traces is not None and "session" in facts:
            self._job_traces.take(activity, start_ns, stop, facts)
        if not self.is_on:
            return
        thread = threading.get_ident()
        if thread not in self._threads:
            self._threads[thread] = _thread_name()
        self._num_left -= 1
        if self._num_left < 0:
            self._stop_recording()
            return
        self._recorded.append((activity, start_ns, stop, thread, facts))

    def measure(self, activity: Activity, /, **facts: Fact) -> AbstractContextManager[None]:
        """Record what goes on inside of the context, also when it ends with an error."""
        return self._measured(activity, facts) if self.is_on or self._job_traces is not None else _NOTHING

    @contextmanager
    def _measured(self, activity: Activity, facts: dict[str, Fact]) -> Iterator[None]:
        started = time.monotonic_ns()
        try:
            yield
        finally:
            self.span(activity, started, **facts)

    def measured(self, activity: Activity, function: Callable[P, T], /, **facts: Fact) -> Callable[P, T]:
        """Return a function that records itself on whatever thread it is called; the function itself while off."""
        if not self.is_on:
            return function

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._measured(activity, facts):
                return function(*args, **kwargs)

        return call

    def _stop_recording(self) -> None:
        if self.is_on:
            self.is_on = False
            log.warning("profile_full", hint="raise --profile-max-events, or profile a shorter run")

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, directory: Path, service: str, *, max_events: int) -> Path:
        """Record from now on, into a new file in `directory`, and return the file's path.

        Raises:
            ConfigurationError: the file cannot be created.
        """
        assert self._thread is None, "started before"
        try:
            self._writer = open_writer(directory, service)
        except OSError as error:
            raise ConfigurationError(f"cannot write a profile into {directory}: {error}", field="profile") from error
        self._num_left = max_events
        self._stopping.clear()
        self._thread = threading.Thread(target=self._flush_until_stopped, name="profile", daemon=True)
        self._thread.start()
        self.is_on = True
        log.info("profile_begins", path=str(self._writer.path), max_events=max_events)
        return self._writer.path

    def trace_jobs(self, traces: JobTraces | None) -> None:
        """Send what is done for jobs from now on, or no more."""
        before, self._job_traces = self._job_traces, traces
        if before is not None:
            before.stop()

    def name_process(self, name: str) -> None:
        """Say what the process is to be called, once that is known: the worker's name."""
        if self._job_traces is not None:
            self._job_traces.worker = name
        if self._writer is not None:
            self._writer.name = name

    def stop(self) -> None:
        """Write what is left and end the file; nothing happens when nothing was started."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.is_on = False
        self._stopping.set()
        thread.join(_STOP_S)
        log.info("profile_ends", num_events=self._writer.num_events if self._writer else 0)

    def _flush_until_stopped(self) -> None:
        assert self._writer is not None
        writer = self._writer
        try:
            while not self._stopping.wait(_FLUSH_S):
                writer.write(self._take(), self._threads)
            writer.write(self._take(), self._threads)
            writer.close()
        except OSError as error:
            self.is_on = False
            self._recorded.clear()
            log.warning("profile_failed", path=str(writer.path), reason=str(error))

    def _take(self) -> list[Recorded]:
        recorded = self._recorded
        return [recorded.popleft() for _ in range(len(recorded))]


def _thread_name() -> str:
    is_main = threading.current_thread() is threading.main_thread()
    return "event loop" if is_main else threading.current_thread().name


tracer = Tracer()
"""This process's tracer; records nothing until a service starts it."""
