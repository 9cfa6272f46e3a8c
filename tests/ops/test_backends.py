"""Each operation is run by its own name, in every backend that `marco-fast info` tells of."""

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

import marco_fast.ops
from marco_fast.ops import backends

# A plan has no numbers, and shards are merged in float64 PyTorch: no backend runs these.
BY_NONE = {"plan_tree_attention", "merge_records", "quantize"}


def test_every_operation_is_listed():
    assert {*backends.OPERATIONS} == {
        name for name in marco_fast.ops.__all__ if name.islower()
    } - BY_NONE


@pytest.mark.parametrize("op", backends.OPERATIONS)
def test_an_operation_asks_for_its_own_backend(op):
    """The public function loads the backend of its own name, and calls its function."""
    tree = ast.parse(inspect.getsource(getattr(marco_fast.ops, op)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    asked = [
        ast.unparse(call.args[-1]) for call in calls if ast.unparse(call.func) == "load_backend"
    ]
    assert asked == [repr(op)]
    assert op in [call.func.attr for call in calls if isinstance(call.func, ast.Attribute)]


@pytest.mark.parametrize("op", backends.OPERATIONS)
@pytest.mark.parametrize("name", backends.BACKENDS)
def test_a_backend_has_a_function_of_every_operation(name, op):
    spec = importlib.util.find_spec(backends.BACKENDS[name].format(op=op))
    assert spec is not None
    body = ast.parse(Path(spec.origin).read_text()).body
    imported = {
        each.name for node in body if isinstance(node, ast.ImportFrom) for each in node.names
    }
    assert op in imported | {node.name for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("op", backends.OPERATIONS)
def test_triton_is_refused_for_want_of_a_gpu_alone(op, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    reason = backends.backend_status(torch.device("cpu"), op)["triton"]
    assert reason.startswith("Triton kernels take CUDA tensors")
