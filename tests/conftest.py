"""What all tests share: threads, hypothesis profiles, the Triton interpreter, instruction sets."""

import dataclasses
import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Before triton is imported: without a GPU its kernels run in the interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    from triton.runtime import interpreter

    # Every int32 sum and product of a kernel is checked for overflow.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, debug=True)
# Each worker of pytest-xdist is one of several processes on the same cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# "ci" tries the same examples every time; "soak" is for long runs by hand:
# pytest tests/test_kv_cache_histories.py --hypothesis-profile=soak
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=4000)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def supported_isas() -> list[str]:
    """The instruction sets this machine can run; none where the extension was not built."""
    try:
        from marco_fast import _C
    except ImportError:
        return []
    return _C.supported_isas()


@pytest.fixture(params=supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The C++ kernels run on each instruction set that this machine has."""
    from marco_fast import _C

    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)
