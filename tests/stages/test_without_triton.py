"""Whatever a host without a GPU runs imports no Triton, which need not be there: it comes with torch for CUDA."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["triton"] = None
import export.command, export.verify, stages.commands.stage_with_vision, stages.compute.loading
import export.parity.ours, stages.stage.service, stages.vision.service
"""


def test_services_and_export_start_without_it() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
