"""Each operation has one name in every layer: what is missing, the assertion that fails says.

To add an operation, add its name to OPERATIONS in marco_fast/ops/backends.py, write the reference,
run this file and do what it says until it passes.
"""

import ast
import re
from pathlib import Path

import pytest
import torch

import marco_fast
from marco_fast.ops import reference, torch_backend
from marco_fast.ops.backends import BACKENDS, OPERATIONS

ROOT = Path(__file__).parents[2]
# Public operations that no backend runs by itself: made from what the others give.
ABOVE = ("merge_records", "plan_tree_attention", "quantize")
# Operations without an operator, and why.
NO_OPERATOR = {"lm_head_records": "merge_records, which takes its result, waits for the device"}

each_operation = pytest.mark.parametrize("op", OPERATIONS)


def functions_in(path: str) -> set[str]:
    """The names of the functions at the top of a file; none where there is no such file."""
    if not (ROOT / path).exists():
        return set()
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@each_operation
def test_it_has_a_reference(op):
    assert callable(getattr(reference, op, None)), (
        f"define {op} in a file of marco_fast/ops/reference/ and name it in its __init__.py"
    )


@each_operation
def test_it_is_public(op):
    assert op in marco_fast.ops.__all__, (
        f"write {op}, which checks its arguments, allocates and runs a backend, in a file of "
        "marco_fast/ops/confidence/ or attention/, and name it in marco_fast/ops/__init__.py"
    )
    assert op in marco_fast.__all__, f"name {op} in _MODULES of marco_fast/__init__.py"


@each_operation
def test_pytorch_runs_it(op):
    assert callable(getattr(torch_backend, op, None)), (
        f"define {op} in marco_fast/ops/torch_backend.py: the reference in float32"
    )


@each_operation
def test_cpp_runs_it(op):
    bindings = "".join(path.read_text() for path in (ROOT / "csrc/cpu/bind").glob("*.cpp"))
    assert re.search(rf'\.def\(\s*"{op}"', bindings), (
        f"write csrc/cpu/<room>/{op}.{{h,cpp}}, add it to KERNELS in setup.py and bind it as "
        f"{op!r} in csrc/cpu/bind/<room>.cpp"
    )
    assert op in functions_in("marco_fast/ops/cpu_backend.py"), (
        f"define {op} in marco_fast/ops/cpu_backend.py: it calls _C.{op}"
    )


@each_operation
def test_triton_runs_it(op):
    path = BACKENDS["triton"].format(op=op).removeprefix("marco_fast.").replace(".", "/") + ".py"
    assert op in functions_in(path), f"write the launcher {op} in {path}"


@pytest.mark.parametrize("op", [op for op in OPERATIONS if op not in NO_OPERATOR])
def test_it_is_a_torch_operator(op):
    import marco_fast.torch_library  # noqa: F401  (registers the operators)

    assert hasattr(torch.ops.marco_fast, op), (
        f"add the schema of {op} to SCHEMAS in marco_fast/torch_library.py and register it"
    )
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"marco_fast::{op}", "Meta"), (
        f"register a fake of {op} in marco_fast/torch_library.py: the shapes of its results"
    )


@each_operation
def test_it_is_tested(op):
    for pattern in (f"tests/ops/test_{op}*.py", f"tests/kernels/test_{op}_triton*.py"):
        assert list(ROOT.glob(pattern)), f"write {pattern.replace('*', '')}"


@each_operation
def test_it_is_timed(op):
    path = f"bench/operations/bench_{op}.py"
    assert f"test_{op}" in functions_in(path), (
        f"write test_{op} in {path}, beside the best way without it and beside its floor"
    )


def public_operations() -> list[str]:
    return [name for name in marco_fast.ops.__all__ if name.islower()]


def test_every_public_operation_is_of_a_backend_or_above_them():
    assert sorted(public_operations()) == sorted([*OPERATIONS, *ABOVE])


@pytest.mark.parametrize("name", public_operations())
def test_a_public_name_means_one_thing(name):
    assert getattr(marco_fast, name) is getattr(marco_fast.ops, name)
    tested = (path.read_text(encoding="utf-8") for path in (ROOT / "tests/ops").glob("test_*.py"))
    assert any(name in text for text in tested), f"no file of tests/ops calls {name}"
