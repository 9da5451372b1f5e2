"""Where trials keep what they make."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker_pipeline.errors import ConfigurationError


@contextmanager
def fresh_directory(chosen: Path | None, field: str) -> Iterator[Path]:
    """Yield an empty directory: `chosen`, or where that is None a temporary one, which goes with the context.

    Raises `ConfigurationError` naming `field`, the option, where something is in `chosen`.
    """
    if chosen is None:
        with tempfile.TemporaryDirectory(prefix="broker-pipeline-trial-") as temporary:
            yield Path(temporary)
        return
    chosen.mkdir(parents=True, exist_ok=True)
    if any(chosen.iterdir()):
        raise ConfigurationError(f"{chosen} is not empty: name a fresh directory", field=field)
    yield chosen.absolute()
