"""The release after this one, simulated: our packages copied, with more in every message, run beside today's.

What tells of something has a field more, and says it, as all its fields. What asks for something has one more as well,
with a default, which is not said: that is how a release adds one (see "Two releases in one pipeline" in
docs/distributed_execution_design.md).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import broker_pipeline

_ROOT = Path(broker_pipeline.__path__[0]).parent
_PACKAGES = ("broker_pipeline", "stages", "gateway")
_CHANGES = (
    (r"(forbid_unknown_fields=False)\):\n", r"\1, omit_defaults=False):\n    of_the_next_release: int = 7\n"),
    (r"(class _Shown\(.*\):\n)", r"\1    of_the_next_release: int = 7\n"),
    (r"(class Envelope\(.*\):\n)", r"\1    priority: int = 0\n"),
)
VERSION = "99.0"


def next_release(directory: Path) -> dict[str, str]:
    """Copy the packages into a directory, changed; return what has a service in this environment run them."""
    for package in _PACKAGES:
        shutil.copytree(_ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    num_changed = 0
    for path in (directory / "broker_pipeline" / "messages").glob("*.py"):
        text = path.read_text()
        for pattern, more in _CHANGES:
            text, num = re.subn(pattern, more, text)
            num_changed += num
        path.write_text(text)
    assert num_changed > 8, "messages are written in another way now"
    init = directory / "broker_pipeline" / "__init__.py"
    init.write_text(re.sub(r"__version__ = .*", f'__version__ = "{VERSION}"', init.read_text()))
    return {"PYTHONPATH": str(directory), "PYTHONSAFEPATH": "1"}
