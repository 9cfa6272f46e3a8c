"""What all tests share: threads, hypothesis profiles, Triton's interpreter, instruction sets."""

import dataclasses
import importlib.util
import os
import random
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

# The files that take longest come first: begun last, one would run for minutes beside an idle core.
SLOWEST = (
    "test_ahead_of_time.py",
    "test_tree_attention_triton_bits.py",
    "test_lm_head_confidence_triton.py",
    "test_sample_confidence_triton.py",
    "test_topk_confidence_triton.py",
    "test_gpu_run.py",
    "test_packaging.py",
    "test_real_model.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, the others in the order of their names."""
    rank = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


# "ci" tries the same examples every time; "soak" is for long runs by hand:
# pytest tests/engine/test_kv_cache_histories.py --hypothesis-profile=soak
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For hundreds of small tensors: PyTorch's team would only wait for itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler() -> None:
    """torch.compile has compiled nothing yet."""
    torch._dynamo.reset()


@pytest.fixture
def in_interpreter() -> None:
    """Triton is here and takes CPU tensors."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("a GPU is here: Triton does not interpret")


@pytest.fixture
def shuffled_programs(in_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs the programs of a grid of one dimension in any order."""
    rng = random.Random(3)
    place = builder.set_grid_idx
    order: list[int] = []

    def set_grid_idx(x: int, y: int, z: int) -> None:
        if x == 0:
            order[:] = rng.sample(range(builder.grid_dim[0]), builder.grid_dim[0])
        place(order[x], y, z)

    monkeypatch.setattr(builder, "set_grid_idx", set_grid_idx)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.empty allocates holds NaN, or integers near the largest."""
    empty = torch.empty

    def garbage(*sizes, **options) -> torch.Tensor:
        memory = empty(*sizes, **options)
        if memory.dtype.is_floating_point:
            return memory.fill_(torch.nan)
        return memory.fill_(torch.iinfo(memory.dtype).max - 7)

    monkeypatch.setattr(torch, "empty", garbage)


@pytest.fixture(params=[(8, 24), (16, 16), (0, 0)], ids=["chunks-of-8", "chunks-of-16", "chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tree attention's chunks: small ones, so that short segments have several and groups span
    segments, and the real ones."""
    from marco_fast.ops.attention import work_items

    tokens, group = request.param
    if tokens:
        monkeypatch.setattr(work_items, "chunk_tokens", lambda head_dim: tokens)
        monkeypatch.setattr(work_items, "TOKEN_GROUP", group)
