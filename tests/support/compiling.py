"""A Python of its own, in which Triton compiles: the one of the tests has set it to interpret."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["compiling_python"]

ROOT = Path(__file__).parents[2]
NOT_PASSED_ON = ("TRITON_INTERPRET", "TRITON_CACHE_DIR")


def compiling_python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python at the top of the checkout, with these variables beside the others."""
    plain = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=plain | environment, capture_output=True,
        text=True, cwd=ROOT,
    )  # fmt: skip
