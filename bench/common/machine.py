"""The machine and the software that a result was measured with."""

import importlib
import os
import platform
import subprocess
from pathlib import Path

import torch

__all__ = ["describe", "output_of"]


def output_of(*command: str) -> str | None:
    """What a command prints at the top of the repository; None where it cannot be run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parents[2]
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def describe() -> dict[str, object]:
    """Commit, processor and versions.

    `instruction_set` is what the C++ kernels use (the processor's name often does not tell it), or
    None where they were not built.
    """
    return {
        "commit": output_of("git", "rev-parse", "HEAD"),
        "cpu": processor_name(),
        "instruction_set": instruction_set(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def instruction_set() -> str | None:
    try:
        return importlib.import_module("marco_fast._C").isa()
    except ImportError:
        return None


def processor_name() -> str | None:
    """The processor's name in /proc/cpuinfo, or what `platform` knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None
