"""A stage as a process of its own whose computations fail, or take long, as long as a file says so.

SickStage(...).start() runs `python -m tests.kit.running.sick_stage stage …`: the product's command, with an engine that
looks into the file before each microbatch. `fail`: out of memory; a number: so many seconds more; no file: well.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from broker_pipeline.cli import main
from broker_pipeline.errors import ComputeError
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.service import LocalService
from stages.stage import service
from stages.stage.engine import StageEngine
from stages.stage.work import Begun, StageWork

_VARIABLE = "SICKNESS_FILE"
_ROOT = Path(__file__).parents[3]


class SickEngine(StageEngine):
    """Fails or sleeps where a stage computes."""

    def _begin(self, work: StageWork, started: float) -> Begun | None:
        path = Path(os.environ[_VARIABLE])
        sickness = path.read_text() if work.envelope.segments and path.exists() else ""
        if sickness == "fail":
            raise ComputeError("out of memory")
        time.sleep(float(sickness or 0.0))
        return super()._begin(work, started)


class SickStage(LocalService):
    """A further stage of a running pipeline."""

    def __init__(self, cluster: LocalCluster, directory: Path, name: str, blocks: str) -> None:
        self._sickness = directory / f"{name}.sickness"
        arguments = ["stage", "--model", str(cluster.settings.model), "--name", name, "--blocks", blocks]
        arguments += ["--kv-tokens", str(cluster.settings.kv_tokens), "--device", "cpu", "--threads", "1"]
        arguments += ["--nats-url", cluster.nats_url, "--redis-url", cluster.redis_url, "--log-format", "json"]
        options: dict[str, Any] = {
            "log_path": directory / f"{name}.log",
            "ready_path": directory / f"{name}.ready",
            "env": {_VARIABLE: str(self._sickness), "PYTHONPATH": str(_ROOT)},
        }
        super().__init__(name, arguments, start_timeout_s=60, **options)
        self._argv = tuple("tests.kit.running.sick_stage" if each == "broker_pipeline" else each for each in self._argv)

    def sicken(self, sickness: str) -> None:
        """Fall ill: `fail`, or seconds."""
        whole = self._sickness.with_suffix(".new")
        whole.write_text(sickness)
        whole.rename(self._sickness)

    def heal(self) -> None:
        """Be well again."""
        self._sickness.unlink()


if __name__ == "__main__":
    setattr(service, "StageEngine", SickEngine)  # noqa: B010 - the product has no such choice
    sys.argv[0] = "broker-pipeline"
    main()
