"""What a result was measured on and with."""

import os
import platform
import subprocess
from pathlib import Path

import cpuinfo
import torch

from marco_fast import _C

__all__ = ["describe", "output_of"]


def output_of(*command: str) -> str | None:
    """What a command prints, run at the top of the repository; None where it cannot."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parents[1]
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def describe() -> dict[str, object]:
    """Commit, processor and versions.

    `instruction_set` is the one of the C++ kernels: a processor's name often does not tell.
    """
    return {
        "commit": output_of("git", "rev-parse", "HEAD"),
        "cpu": cpuinfo.get_cpu_info().get("brand_raw"),
        "instruction_set": _C.isa(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
