"""A /dev/shm of one's own is full for oneself and one's children, and for nobody else, but for libfaketime."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import os, subprocess, sys
from trials.soak.faults import shared_memory
shared_memory.make_own()
room = lambda: os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize > 2**20
print(os.listdir("/dev/shm"), room())
shared_memory.fill()
write = "open('/dev/shm/more', 'wb').write(bytes(2 * 10**6))"
child = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True)
print(room(), "No space left" in child.stderr)
os.path.exists("/dev/shm/more") and os.remove("/dev/shm/more")
print(os.statvfs("/dev/shm").f_bavail >= 2 * 64)  # two pages for each service whose clock is faked
shared_memory.empty()
print(os.listdir("/dev/shm"), room())
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting takes root")
def test_it_is_full_for_its_owner_alone() -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    run = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["[] True", "False True", "True", "[] True"], run.stderr
    assert not os.path.exists("/dev/shm/soak-filling")  # noqa: PTH110
