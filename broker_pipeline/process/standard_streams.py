"""Standard input, output and error as a process finds them: closed, full, or without a reader."""

from __future__ import annotations

import contextlib
import io
import os
from typing import TextIO

import click


def open_closed_streams() -> None:
    """Open what is closed of the descriptors 0 to 2, so that no file gets their numbers and what others print."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def escape_unprintable(*streams: TextIO | None) -> None:
    """Have streams escape what the terminal's encoding has no character for, in place of an error."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence(stream: TextIO | None) -> None:
    """Lead a stream that cannot be written to nowhere, so that what it still holds does not spoil the process's end."""
    if stream is None:
        return
    fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a stream without a descriptor
        os.dup2(fd, stream.fileno())
    os.close(fd)


def say_error(text: str, stream: TextIO | None) -> None:
    """Print an error on `stream`, standard error, where somebody can read it."""
    try:
        click.echo(f"error: {text}", file=stream, err=True)
    except OSError:
        silence(stream)
