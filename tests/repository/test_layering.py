"""Who may import whom: each floor uses only those below, each stack stays in its corner."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from marco_fast.ops.backends import OPERATIONS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "marco_fast"
KERNELS = ROOT / "kernels"

# Floor by floor, the highest first: a file imports only from floors below its own, or from its own
# folder. Names are files and folders of the package; kernels/ stands for marco_fast.kernels.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["commands"],
    ["comparison", "data"],
    ["tree_view"],
    ["questions"],
    ["forest"],
    ["search"],
    ["engine"],
    ["torch_library"],
    ["ops"],
    ["kernels"],
    ["_C", "errors", "files", "text"],
]
# What may be imported less widely than the floors allow: importer's floor and what of ours it sees.
ONLY = {
    "kernels": ["kernels"],
    "search": ["search", "text"],
    "questions": ["questions", "search"],
    "tree_view": ["tree_view", "search", "files"],
    "errors": [],
    "text": [],
    "files": [],
    "ops": ["ops", "errors", "_C"],
    "engine": ["engine", "ops", "errors", "text", "_C"],
    "torch_library": ["ops", "errors"],
}
# A stack, or a floor, and the only files that may import it.
ONLY_IN = {
    "triton": ["kernels/*"],
    "transformers": ["engine/*"],
    "rich": ["commands/*", "forest/live.py"],
    "jinja2": ["comparison/page.py", "tree_view/page.py", "engine/*"],  # chat templates fail by it
    "marco_fast._C": [
        "ops/*",
        "engine/native_runner.py",
        "engine/packing.py",
        "commands/info.py",
    ],
}


def package_files() -> dict[str, Path]:
    """Every Python file of the package by its path inside it; kernels/ by its real place."""
    files = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "kernels" not in path.parents]
    named = {path.relative_to(PACKAGE).as_posix(): path for path in files}
    return named | {f"kernels/{path.name}": path for path in KERNELS.glob("*.py")}


FILES = package_files()
ALL_FILES = [*FILES.values(), *ROOT.glob("*.py")]
for folder in ("tests", "bench", "examples"):
    ALL_FILES += (ROOT / folder).rglob("*.py")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of a file's syntax tree, without what only a type checker reads."""
    return list(running_code(ast.parse(path.read_text(encoding="utf-8"))))


def running_code(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from running_code(child)


@cache
def imports(path: Path) -> list[str]:
    """The dotted names that a file imports anywhere, but for types alone."""
    names = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = path.parts[len(ROOT.parts) : -node.level] if node.level else ()
            module = ".".join([*home, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def under(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def floor_of(name: str) -> str:
    """The room of the package that a file or a dotted name below marco_fast is in."""
    return name.replace("/", ".").split(".")[0]


def height(floor: str) -> int:
    return next(index for index, names in enumerate(FLOORS) if floor in names)


def test_every_room_has_a_floor():
    rooms = {floor_of(name.removesuffix(".py")) for name in FILES} - {"__init__"}
    assert rooms == {name for names in FLOORS for name in names} - {"_C"}


@pytest.mark.parametrize("name", FILES)
def test_imports_only_go_down(name):
    own = floor_of(name.removesuffix(".py"))
    for imported in imports(FILES[name]):
        below = imported.removeprefix("marco_fast.")
        if not under(imported, "marco_fast") or below in ("marco_fast", "__version__"):
            continue
        assert own != "__init__", f"{name} imports {imported}"
        floor = floor_of(below)
        assert floor == own or height(floor) > height(own), f"{name} imports {imported}"
        assert floor in ONLY.get(own, [floor]), f"{name} imports {imported}"


@pytest.mark.parametrize("name", FILES)
def test_each_stack_stays_in_its_corner(name):
    for imported in imports(FILES[name]):
        for stack, allowed in ONLY_IN.items():
            if under(imported, stack):
                assert any(fnmatch(name, each) for each in allowed), f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("search/")])
def test_the_search_knows_numpy_alone(name):
    ours_or_numpy = {"marco_fast", "numpy"} | sys.stdlib_module_names
    assert {imported.partition(".")[0] for imported in imports(FILES[name])} <= ours_or_numpy


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("ops/")])
def test_the_operations_know_tensors_alone(name):
    known = {"marco_fast", "numpy", "torch"} | sys.stdlib_module_names
    assert {imported.partition(".")[0] for imported in imports(FILES[name])} <= known


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe(path):
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    assert not unsafe & {imported.partition(".")[0] for imported in imports(path)}
    for node in nodes(path):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("eval", "exec", "torch.load", "__import__")
            assert "allow_pickle" not in [keyword.arg for keyword in node.keywords]


@pytest.mark.parametrize("name", FILES)
def test_the_environment_is_read_in_two_places(name):
    if name in ("ops/backends.py", "cli.py"):
        return
    for node in nodes(FILES[name]):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv"), f"{name}:{node.lineno}"


def test_kernels_is_a_namespace():
    assert not (KERNELS / "__init__.py").exists()
    assert (PACKAGE / "kernels").resolve() == KERNELS


def test_csrc_knows_python_in_one_room():
    sources = [
        path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}
    ]
    assert sources
    for path in sources:
        text = path.read_text()
        assert path.parent == ROOT / "csrc/cpu/bind" or "pybind11" not in text, path
        assert "<torch/" not in text, path


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("kernels/")])
def test_a_kernel_file_is_an_operation_or_serves_one(name):
    base = Path(name).stem
    functions = {
        node.name for node in ast.parse(FILES[name].read_text()).body if hasattr(node, "name")
    }
    used = {imported for each in FILES if each != name for imported in imports(FILES[each])}
    serves = any(under(imported, f"marco_fast.kernels.{base}") for imported in used)
    assert (base in OPERATIONS and base in functions) or serves, f"nothing calls {name}"


HEAVY = ["triton", "transformers", "rich", "matplotlib"]


@pytest.mark.parametrize(
    ("statement", "kept_out"),
    [
        ("import marco_fast", HEAVY),
        ("import marco_fast.ops, marco_fast.ops.reference.attention", HEAVY),
        ("import marco_fast.search.mcts", [*HEAVY, "torch", "marco_fast.ops", "marco_fast.engine"]),
        ("import marco_fast; [getattr(marco_fast, name) for name in dir(marco_fast)]", ["rich"]),
    ],
)
def test_imports_stay_light(statement, kept_out):
    code = f"import sys; {statement}; print([name for name in {kept_out} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == "[]\n", run.stderr


def test_tests_bench_and_support_form_no_circle():
    """A test may import bench, bench may import tests.support, and tests.support imports neither.

    No test imports another test: what tests share is in tests/support, or, where it is about one
    room alone, in a module of that room whose name does not begin with test_.
    """
    for path in ALL_FILES:
        folders = path.relative_to(ROOT).parts
        for imported in imports(path):
            told = f"{path} imports {imported}"
            if under(imported, "bench"):
                assert folders[0] in ("bench", "tests"), told
                assert folders[:2] != ("tests", "support"), told
            if under(imported, "tests") and not under(imported, "tests.support"):
                room, module = imported.split(".")[1:3]
                assert folders[:2] == ("tests", room), told
                assert not module.startswith("test_"), told


def test_the_package_knows_neither_tests_nor_bench():
    for name, path in FILES.items():
        known = {imported.partition(".")[0] for imported in imports(path)}
        assert not known & {"tests", "bench", "examples"}, name
