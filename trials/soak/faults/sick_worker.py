"""A worker whose computations fail, or take long, as long as a file says so: the product's command, with that put in.

python -m trials.soak.faults.sick_worker FILE python -m broker_pipeline stage …

FILE is looked at before each computation. `fail`: out of memory; a number: so many seconds more; no file: well.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from broker_pipeline.cli import run
from broker_pipeline.errors import ComputeError
from broker_pipeline.messages.vision import PrepareRequest
from stages.stage import service as stage_service
from stages.stage.engine import StageEngine
from stages.stage.work import Begun, StageWork
from stages.vision import service as vision_service
from stages.vision.session_preparer import Prepared, SessionPreparer

_NUM_WORDS_BEFORE = 3
"""python -m broker_pipeline"""


def _suffer(path: Path) -> None:
    sickness = path.read_text() if path.exists() else ""
    if sickness == "fail":
        raise ComputeError("out of memory")
    if sickness:
        time.sleep(float(sickness))


def _put_in(path: Path) -> None:
    class SickEngine(StageEngine):
        def _begin(self, work: StageWork, started: float) -> Begun | None:
            if work.envelope.segments:
                _suffer(path)
            return super()._begin(work, started)

    class SickPreparer(SessionPreparer):
        async def prepare(self, request: PrepareRequest, deadline: float) -> Prepared:
            _suffer(path)
            return await super().prepare(request, deadline)

    setattr(stage_service, "StageEngine", SickEngine)  # noqa: B010 - the product has no such choice
    setattr(vision_service, "SessionPreparer", SickPreparer)  # noqa: B010


if __name__ == "__main__":
    _put_in(Path(sys.argv[1]))
    sys.argv = ["broker-pipeline", *sys.argv[2 + _NUM_WORDS_BEFORE :]]
    run()
