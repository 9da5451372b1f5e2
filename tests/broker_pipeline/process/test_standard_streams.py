"""What a terminal's encoding has no character for is escaped."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_terminal_of_another_encoding_ends_no_command() -> None:
    code = (
        "import click, broker_pipeline.cli as command_line; "
        "command_line.cli = lambda **_: click.echo('a \u2192 b'); command_line.main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert run.stdout == b"a \\u2192 b\n"
