"""The C compiler that Triton takes for the launchers of kernels."""

from __future__ import annotations

import os
import shutil


def has_compiler() -> bool:
    """Say whether Triton would find one."""
    return "CC" in os.environ or any(map(shutil.which, ("gcc", "clang")))
