"""Who may import whom: each floor uses only those below, each stack stays in its corner."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import marco_fast
import marco_fast.ops

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "marco_fast"
KERNELS = ROOT / "kernels"

# Floor by floor: files of the package (or of kernels/), and what of ours they may import. The first
# pattern that fits a file counts.
MAY_IMPORT = {
    "__init__.py": [],
    "errors.py": [],
    "kernels/*": ["marco_fast.kernels"],
    "models/*": ["marco_fast.models", "marco_fast.search", "marco_fast.files"],
    "search/*": ["marco_fast.search"],
    "ops/cpu.py": ["marco_fast._C", "marco_fast.ops", "marco_fast.errors"],
    "ops/native_plan.py": ["marco_fast._C", "marco_fast.ops", "marco_fast.errors"],
    "ops/tree_items.py": ["marco_fast._C", "marco_fast.ops", "marco_fast.errors"],
    "ops/*": ["marco_fast.ops", "marco_fast.errors"],
    "torch_library.py": ["marco_fast.ops", "marco_fast.errors"],
    "engine/decoder.py": [
        "marco_fast._C",
        "marco_fast.engine",
        "marco_fast.ops",
        "marco_fast.errors",
    ],
    "engine/*": ["marco_fast.engine", "marco_fast.ops", "marco_fast.errors"],
    "files.py": [],
    "statistics.py": [],
    "result.py": ["marco_fast.search", "marco_fast.errors", "marco_fast.files"],
    "live.py": ["marco_fast.result"],
    "*": ["marco_fast"],
}
# A stack, and the only files that may import it.
ONLY_IN = {
    "triton": ["kernels/*"],
    "cupy": ["ops/cuda.py"],
    "transformers": [
        "engine/*",
        "integrations/transformers.py",
        "models/train.py",
    ],
    "rich": ["commands/*", "live.py"],
    "vllm": ["integrations/vllm.py"],
    "sglang": ["integrations/sglang.py"],
    "ray": ["integrations/ray.py"],
}
# Operations that share the files, and so the base name, of another.
BASE = {
    "sample_confidence": "topk_confidence",
    "plan_tree_attention": "tree_attention",
    "merge_records": "lm_head_records",
}
ABOVE_SOLVE = ("marco_fast.cli", "marco_fast.commands", "marco_fast.integrations")
ON_TOP = ("cli.py", "__main__.py", "commands/*", "integrations/*")  # may import those


def package_files() -> dict[str, Path]:
    """Every Python file of the package by its path inside it; kernels/ by its real place."""
    files = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "kernels" not in path.parents]
    named = {path.relative_to(PACKAGE).as_posix(): path for path in files}
    return named | {f"kernels/{path.name}": path for path in KERNELS.glob("*.py")}


FILES = package_files()
ALL_FILES = [*FILES.values(), *ROOT.glob("*.py")]
for folder in ("tests", "bench", "examples"):
    ALL_FILES += (ROOT / folder).rglob("*.py")


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = path.parts[len(ROOT.parts) : -node.level] if node.level else ()
            module = ".".join([*home, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def under(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def first_fit(name: str, table: dict[str, list[str]]) -> list[str]:
    return next(value for pattern, value in table.items() if fnmatch(name, pattern))


@pytest.mark.parametrize("name", FILES)
def test_imports_only_go_down(name):
    allowed = first_fit(name, MAY_IMPORT)
    for imported in imports(FILES[name]):
        if under(imported, "marco_fast") and imported != "marco_fast.__version__":
            assert any(under(imported, each) for each in allowed), f"{name} imports {imported}"
        if not any(fnmatch(name, each) for each in ON_TOP):
            assert not imported.startswith(ABOVE_SOLVE), f"{name} imports {imported}"


@pytest.mark.parametrize("name", FILES)
def test_each_stack_stays_in_its_corner(name):
    for imported in imports(FILES[name]):
        stack = imported.partition(".")[0]
        allowed = ONLY_IN.get(stack, ["*"])
        assert any(fnmatch(name, pattern) for pattern in allowed), f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("search/")])
def test_the_search_knows_numpy_alone(name):
    ours_or_numpy = {"marco_fast", "numpy"} | sys.stdlib_module_names
    assert {imported.partition(".")[0] for imported in imports(FILES[name])} <= ours_or_numpy


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("ops/")])
def test_the_operations_know_tensors_alone(name):
    known = {"marco_fast", "numpy", "torch", "cupy"} | sys.stdlib_module_names
    assert {imported.partition(".")[0] for imported in imports(FILES[name])} <= known


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe(path):
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    assert not unsafe & {imported.partition(".")[0] for imported in imports(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("eval", "exec", "torch.load", "__import__")
            assert "allow_pickle" not in [keyword.arg for keyword in node.keywords]


@pytest.mark.parametrize("name", FILES)
def test_the_environment_is_read_in_two_places(name):
    if name in ("ops/backends.py", "cli.py") or name.startswith("models/"):
        return
    for node in ast.walk(ast.parse(FILES[name].read_text())):
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


def operations() -> list[str]:
    return [name for name in marco_fast.ops.__all__ if name.islower()]


@pytest.mark.parametrize("name", operations())
def test_an_operation_has_one_name_in_every_layer(name):
    from marco_fast.ops import reference

    assert getattr(marco_fast, name) is getattr(marco_fast.ops, name)
    # A plan has no numbers, and shards are merged in float64 PyTorch to begin with.
    assert name in ("plan_tree_attention", "merge_records") or callable(getattr(reference, name))
    assert list((ROOT / "tests").glob(f"test_{BASE.get(name, name)}*.py"))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("kernels/")])
def test_a_kernel_file_is_an_operation_or_serves_one(name):
    base = Path(name).stem
    functions = {
        node.name for node in ast.parse(FILES[name].read_text()).body if hasattr(node, "name")
    }
    used = {imported for each in FILES if each != name for imported in imports(FILES[each])}
    serves = any(under(imported, f"marco_fast.kernels.{base}") for imported in used)
    assert (base in operations() and base in functions) or serves, f"nothing calls {name}"


HEAVY = ["triton", "transformers", "cupy", "rich", "matplotlib", "vllm"]


@pytest.mark.parametrize(
    ("statement", "kept_out"),
    [
        ("import marco_fast", HEAVY),
        ("import marco_fast.ops, marco_fast.ops.reference", HEAVY),
        ("import marco_fast.search.mcts", [*HEAVY, "torch", "marco_fast.ops", "marco_fast.engine"]),
        (
            "import marco_fast; [getattr(marco_fast, name) for name in dir(marco_fast)]",
            ["cupy", "rich"],
        ),
    ],
)
def test_imports_stay_light(statement, kept_out):
    code = f"import sys; {statement}; print([name for name in {kept_out} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == "[]\n", run.stderr


@pytest.mark.parametrize("folder", ["tests", "bench"])
def test_what_tests_share_is_in_support(folder):
    """No test imports another test; benchmarks of the tests take what is in tests/support."""
    for path in (ROOT / folder).rglob("*.py"):
        for imported in imports(path):
            if under(imported, "tests"):
                assert under(imported, "tests.support"), f"{path} imports {imported}"
