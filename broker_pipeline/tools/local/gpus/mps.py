"""NVIDIA's Multi-Process Service for the workers of one pipeline: their kernels run side by side on a GPU.

Without it, processes are time-sliced on a GPU. The service needs no setting of the GPU and touches none; it lives in
directories of its own, so that it neither finds nor disturbs another one on the machine.

    async with mps_service(directory) as env:
        ...  # processes started with `env` share their GPU

The control program puts itself into the background: it is ended by its own command, not as a child.
https://docs.nvidia.com/deploy/mps/
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from broker_pipeline.errors import ConfigurationError, ServerStartError

PROGRAM = "nvidia-cuda-mps-control"
_TIMEOUT_S = 15.0
_MAX_PATH = 80
"""The service's sockets lie below its directory, and a socket's path has at most 107 characters."""


@asynccontextmanager
async def mps_service(directory: Path) -> AsyncIterator[Mapping[str, str]]:
    """Yield what processes need in their environment to be served until the end of the context; they end before it.

    Raises:
        ConfigurationError: this machine does not have the program.
        ServerStartError: it did not start; with its words.
    """
    if shutil.which(PROGRAM) is None:
        raise ConfigurationError(
            f"{PROGRAM} is not on PATH: NVIDIA's driver brings it; without it, processes share a GPU, time-sliced",
            field="mps",
        )
    with _short_path(directory) as short:
        pipes, logs = short / "pipe", short / "log"
        for each in (pipes, logs):
            each.mkdir(parents=True, exist_ok=True)
        env = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
        await _control(env, "-d")
        try:
            yield env
        finally:
            await _control(env, command="quit")


@contextmanager
def _short_path(wanted: Path) -> Iterator[Path]:
    if len(str(wanted.absolute())) <= _MAX_PATH:
        yield wanted.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="bp-mps-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


async def _control(env: Mapping[str, str], *arguments: str, command: str = "") -> None:
    # Its output goes to a file: the daemon would inherit a pipe, whose end then never comes.
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            PROGRAM, *arguments, stdin=asyncio.subprocess.PIPE, stdout=said, stderr=said, env={**os.environ, **env}
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await process.communicate(f"{command}\n".encode() if command else None)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise ServerStartError(f"{PROGRAM} {command or ' '.join(arguments)} took over {_TIMEOUT_S:g} s") from None
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise ServerStartError(f"{PROGRAM} {command or ' '.join(arguments)} failed: {words or process.returncode}")
