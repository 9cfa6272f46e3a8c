"""Files of at most 300 lines, functions of at most 40 lines and 12 parameters.

What is over a limit today stands in over_limits.txt with its size. That list may only shrink: the
test fails when an entry grows, and also when an entry could be lowered or removed. This prints the
list as it should be:

    python -m tests.repository.test_limits
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import marco_fast

ROOT = Path(__file__).parents[2]
FOLDERS = ("marco_fast", "kernels", "csrc", "bench", "tests", "examples")
SOURCES = {".py", ".h", ".cpp", ".cu", ".cuh", ".js", ".css", ".j2"}
LIMITS = {"file": 300, "function": 40, "parameters": 12}
LISTED = Path(__file__).with_name("over_limits.txt")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[Path]:
    """Every source file of the repository, the kernels once by their real place."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SOURCES and ROOT / "marco_fast" / "kernels" not in path.parents:
                yield path


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below `tree`, with the names of the classes and functions around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, inside)


def length(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def parameters(function: Function) -> int:
    """Parameters without self and cls.

    A public call and what has its name in another layer (overload, reference, operator) may have
    more options: its keyword-only parameters do not count.
    """
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    count = len(names) - (names[:1] in (["self"], ["cls"]))
    count += (arguments.vararg is not None) + (arguments.kwarg is not None)
    return count if function.name in marco_fast.__all__ else count + len(arguments.kwonlyargs)


def sizes(path: Path) -> Iterator[tuple[str, str, int]]:
    """(which limit, name, size) of a file and of each function in it."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    yield "file", name, len(text.splitlines())
    if path.suffix == ".py":
        for function, node in functions(ast.parse(text)):
            yield "function", f"{name}:{function}", length(node)
            yield "parameters", f"{name}:{function}", parameters(node)


def over_limits() -> dict[str, int]:
    """What is over its limit: "limit name" and the size, the largest of one name (overloads)."""
    over: dict[str, int] = {}
    for path in sources():
        for limit, name, size in sizes(path):
            if size > LIMITS[limit]:
                over[f"{limit} {name}"] = max(size, over.get(f"{limit} {name}", 0))
    return dict(sorted(over.items()))


def as_text(over: dict[str, int]) -> str:
    return "".join(f"{key} {size}\n" for key, size in over.items())


def test_nothing_grows_over_its_limit_and_the_list_shrinks():
    lines = LISTED.read_text(encoding="utf-8").splitlines()
    listed = {key: int(size) for key, _, size in (line.rpartition(" ") for line in lines)}
    found = over_limits()
    grown = {key: size for key, size in found.items() if size > listed.get(key, 0)}
    assert not grown, f"split these by concept, the limits are {LIMITS}:\n{as_text(grown)}"
    assert found == listed, (
        f"{LISTED.name} may be shorter; the output of python -m tests.repository.test_limits "
        f"belongs into it:\n{as_text(found)}"
    )


SAMPLE = '''
class Reader:
    def read(self, a, /, b, *rest, c=1, **options):
        """One.

        Three.
        """
        def inner(x):
            return x
        return inner

def append_kv(k, *, backend, room):
    return k
'''


@pytest.mark.parametrize(
    ("name", "lines", "count"),
    [("Reader.read", 4, 5), ("Reader.read.inner", 2, 1), ("append_kv", 2, 1)],
)
def test_how_sizes_are_counted(name, lines, count):
    node = dict(functions(ast.parse(SAMPLE)))[name]
    assert (length(node), parameters(node)) == (lines, count)


if __name__ == "__main__":
    print(as_text(over_limits()), end="")
