"""What wheels and source archives hold; that an installed package and a bare checkout work."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import marco_fast

ROOT = Path(__file__).parents[2]
KERNELS = {path.name for path in (ROOT / "kernels").glob("*.*")}
MODELS = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "marco_fast" / "models").glob("*/*")
    if path.parent.name.startswith("nano-")
}
BUILD_SDIST = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
USE = """
import sys
# Where a checkout is installed for editing, its finder would lend the missing extension.
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in str(each)]
import importlib.util, pathlib, marco_fast, torch
home = pathlib.Path(marco_fast.__file__).parent
print(home)
print(importlib.util.find_spec("marco_fast.kernels").origin)
print(*sorted(path.name for path in (home / "kernels").glob("*.*")))
result = marco_fast.topk_confidence(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), top_k=2)
print(round(result.confidence.item(), 6))
from marco_fast.ops.backends import default_backend
print(default_backend(torch.device("cpu"), "topk_confidence"))
"""

# A compiler whose objects are empty, and whose shared library is a finished one.
LINK = """
import pathlib, shutil, sys
out = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
shutil.copy({built!r}, out) if "-shared" in sys.argv else out.write_bytes(b"")
"""


def run(*command: object, cwd: Path, **env: str) -> str:
    """The standard output of a command, which must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def pip_wheel(source: Path, out: Path, **env: str) -> Path:
    options = ["--no-build-isolation", "--no-deps", "-q", "-w", out]
    # Unoptimised kernels: what is tested is where they go, and they compile several times faster.
    flags = {"MARCO_FAST_CXXFLAGS": "-O0 -w", **env}
    run(sys.executable, "-m", "pip", "wheel", source, *options, cwd=source, **flags)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a fresh clone holds: no build outputs, the package linked to kernels/."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    copy = tmp_path_factory.mktemp("checkout")
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    run(sys.executable, "-c", BUILD_SDIST, cwd=checkout)
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def source(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


@pytest.fixture(scope="module", params=["linked", pytest.param("compiled", marks=pytest.mark.slow)])
def wheel(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Compiled from the source archive in a minute, or linked from the extension that is here."""
    folder = tmp_path_factory.mktemp("wheel")
    if request.param == "compiled":
        return pip_wheel(source, folder)
    built = importlib.util.find_spec("marco_fast._C")
    if built is None or built.origin is None:
        pytest.skip("the extension is not built")
    compiler = folder / "compiler"
    compiler.write_text(f"#!{sys.executable}\n{LINK.format(built=built.origin)}")
    compiler.chmod(0o755)
    return pip_wheel(source, folder, CC=str(compiler), CXX=str(compiler))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def installed(wheel: Path, target: Path) -> list[str]:
    """What USE prints where the wheel alone is installed, from a folder that is no checkout."""
    target.mkdir()
    options = ["--no-deps", "--no-compile", "-q", "--target", target]
    run(sys.executable, "-m", "pip", "install", wheel, *options, cwd=target)
    return run(sys.executable, "-c", USE, cwd=target.parent, PYTHONPATH=str(target)).splitlines()


def test_the_source_archive_holds_what_a_build_needs(source):
    held = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    csrc = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.[chc]*")}
    assert csrc <= held
    assert {f"kernels/{name}" for name in KERNELS} <= held
    assert held >= MODELS | {"LICENSE", "constraints.txt", "setup.py", "pyproject.toml"}
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


def test_the_wheel_holds_the_package_alone(wheel):
    held = names(wheel)
    assert {name.partition("/")[0] for name in held} == {"marco_fast"}
    assert {f"marco_fast/kernels/{name}" for name in KERNELS} <= held
    assert held >= MODELS
    assert "marco_fast/py.typed" in held
    assert "marco_fast/kernels/__init__.py" not in held
    package = ROOT / "marco_fast"
    for kind in ("*.py", "*.j2", "*.js", "*.css"):
        files = {path.relative_to(ROOT).as_posix() for path in package.rglob(kind)}
        assert files <= held
    assert not [name for name in held if "train" in name]
    assert len([name for name in held if name.startswith("marco_fast/_C.")]) == 1


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"marco_fast-{marco_fast.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert "Requires-Python: >=3.10\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "marco-fast = marco_fast.cli:main" in entry_points
    assert "Requires-Dist: pybind11" not in metadata.partition("Provides-Extra")[0]


def test_an_installed_wheel_works_from_anywhere(wheel, tmp_path):
    home, origin, kernels, confidence, backend = installed(wheel, tmp_path / "site")
    assert Path(home) == tmp_path / "site" / "marco_fast"
    assert origin == "None"
    assert set(kernels.split()) == KERNELS
    assert confidence == "0.731059"
    assert backend == "cpu"


def test_without_a_compiler_the_torch_backend_serves(checkout, tmp_path):
    missing = str(tmp_path / "no-compiler")
    wheel = pip_wheel(checkout, tmp_path / "wheel", CC=missing, CXX=missing)
    assert not [name for name in names(wheel) if name.startswith("marco_fast/_C")]
    assert {name.partition("/")[0] for name in names(wheel)} == {"marco_fast"}
    *_, confidence, backend = installed(wheel, tmp_path / "site")
    assert (confidence, backend) == ("0.731059", "torch")


def test_a_bare_checkout_works(checkout):
    home, origin, kernels, confidence, _ = run(
        sys.executable, "-c", USE, cwd=checkout, PYTHONPATH=str(checkout)
    ).splitlines()
    assert Path(home) == checkout / "marco_fast"
    assert origin == "None"
    assert set(kernels.split()) == KERNELS
    assert confidence == "0.731059"


def test_a_checkout_on_the_path_leaves_transformers_whole(checkout):
    code = "import transformers.models.qwen2.modeling_qwen2 as m; print(m.__name__)"
    out = run(sys.executable, "-c", code, cwd=checkout, PYTHONPATH=str(checkout))
    assert out.endswith("modeling_qwen2\n")


def test_versions_agree():
    assert f'version = "{marco_fast.__version__}"' in (ROOT / "pyproject.toml").read_text()
