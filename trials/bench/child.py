"""What a program that a benchmark starts says when it cannot go on: a sentence, which the benchmark shows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from broker_pipeline.errors import PipelineError


def run_child(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main` with the command line's arguments; end with status 1 and one line on an error that is known."""
    try:
        main(sys.argv[1:])
    except PipelineError as error:
        sys.exit(f"error: {error.message}")
