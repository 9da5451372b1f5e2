"""Several gateway processes behind one port, kept running by this one, which serves nothing itself.

    supervisor   binds the port and never listens: it is taken, also while a process is down
        │
        ├── process 0, 1, …   listen on it (SO_REUSEPORT); the kernel gives each connection to one of them
        ├── one that died     is started again after a pause that grows, and the others go on
        └── first signal      all of them drain; second signal: all end

Requests of one client may reach any process: what they share is in Redis and NATS. Limits are shared out, so that they
hold for all processes together.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.service import ServiceContext
from broker_pipeline.tools.local.processes import STANDARD_ERROR
from broker_pipeline.tools.local.service import LocalService
from broker_pipeline.tools.local.supervisor import SupervisedProgram, start_together
from gateway.app import cannot_listen, url_of
from gateway.metrics import MULTIPROCESS_VARIABLE
from gateway.settings import GatewaySettings

_START_TIMEOUT_S = 60.0
_MARGIN_S = 1.0
"""From the end of what processes have for draining to the end of what this one has."""

log = structlog.get_logger()


async def supervise(context: ServiceContext, settings: GatewaySettings, flags: Sequence[str]) -> None:
    """Run the gateway's processes, each with the command line `flags`, until asked to stop.

    Raises `ConfigurationError` for a port that is taken, `ServerStartError` for a process that cannot start.
    """
    with reserved_port(settings.host, settings.port) as (url, port), TemporaryDirectory(prefix="gateway-") as directory:
        programs = [
            _program(settings, index, (*flags, f"--port={port}"), Path(directory))
            for index in range(settings.num_processes)
        ]
        drain_s = settings.common.drain_s
        try:
            await start_together(programs)
            context.ready(url=url, processes=len(programs))
            await _watch_until_stopped(context, programs)
        except BaseException:
            drain_s = 0.0
            raise
        finally:
            await asyncio.gather(*(program.stop(drain_s) for program in programs))


async def _watch_until_stopped(context: ServiceContext, programs: Sequence[SupervisedProgram]) -> None:
    with raising_first_error():
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(program.watch()) for program in programs]
            await context.stopping.wait()
            for watch in watches:
                watch.cancel()


def _program(settings: GatewaySettings, index: int, flags: Sequence[str], directory: Path) -> SupervisedProgram:
    drain_s = settings.common.drain_s
    own = (f"--processes={settings.num_processes}", f"--process-index={index}")
    service = LocalService(
        f"gateway-{index}",
        ("gateway", *flags, *own, f"--drain-s={max(drain_s / 2, drain_s - _MARGIN_S)}"),
        log_path=STANDARD_ERROR,
        ready_path=directory / f"{index}.ready",
        env={MULTIPROCESS_VARIABLE: str(directory)},
        start_timeout_s=_START_TIMEOUT_S,
    )
    return SupervisedProgram(service.name, service, on_change=lambda program: _on_change(program, directory))


def _on_change(program: SupervisedProgram, directory: Path) -> None:
    if program.state == "ready":
        log.info("process_ready", process=program.name, pid=program.pid)
    elif program.state in {"restarting", "failed"}:
        log.warning("process_died", process=program.name, reason=program.detail)
        for gauges in directory.glob(f"gauge_live*_{program.process.pid}.db"):
            gauges.unlink(missing_ok=True)  # what it had under way is no more; what it counted stays counted


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[tuple[str, int]]:
    """Take a port for this process and its children, without listening; yield the URL and the port.

    Raises `ConfigurationError` when somebody has it, be it another supervisor: it is shared only once it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    with taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
        try:
            taken.bind(address)
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        # Linux asks both sockets: from now on only those share the address who ask for that, which supervisors do not.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        name = taken.getsockname()
        yield url_of(*name[:2]), name[1]
