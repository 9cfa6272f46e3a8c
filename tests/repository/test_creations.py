"""Every tensor that is made says its device, and every float one its dtype: PyTorch's defaults are
the user's."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("marco_fast/ops", "marco_fast/engine", "marco_fast/forest", "kernels")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
# What makes a tensor, and whether its values say its dtype.
MAKERS = {
    "arange": True, "as_tensor": True, "empty": False, "eye": False, "full": False,
    "linspace": False, "ones": False, "rand": False, "randint": True, "randn": False,
    "randperm": True, "tensor": True, "zeros": False,
}  # fmt: skip


def made(path: Path) -> list[tuple[str, ast.Call]]:
    """Each call of a maker in a file: its name, and the call."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(name, each) for each in calls for name in makers_of(each.func)]


def makers_of(function: ast.expr) -> list[str]:
    """The makers that an expression may stand for: torch.zeros, or one of two."""
    if isinstance(function, ast.IfExp):
        return makers_of(function.body) + makers_of(function.orelse)
    name = ast.unparse(function)
    maker = name.removeprefix("torch.")
    return [maker] if maker in MAKERS and maker != name else []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_device_and_dtype_are_said(path):
    for name, call in made(path):
        said = {each.arg for each in call.keywords}
        needed = {"device"} if MAKERS[name] else {"device", "dtype"}
        assert needed <= said, f"line {call.lineno}: {ast.unparse(call)} needs {needed - said}"


def test_the_search_for_makers_finds_them():
    call = ast.parse("(torch.zeros if x else torch.empty)(3)").body[0].value
    assert makers_of(call.func) == ["zeros", "empty"]
    assert sum(len(made(path)) for path in SOURCES) > 20
