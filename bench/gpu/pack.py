"""Kernels and the extension, compiled here to be carried to a GPU machine.

python -m bench.gpu.pack [--out DIR] [--arch sm_90]

It must run with the versions of Python and Triton of the GPU machine (`make gpu-pack`): Triton's
cache keys a kernel by the contents of Triton's wheel, and an extension loads in one version of
Python. DIR gets the kernels' cache, the extension, and manifest.json with those versions.
"""

import argparse
import atexit
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

__all__ = ["main", "use"]

ROOT = Path(__file__).parents[2]
MOST_BYTES = 60e6
BUILD_SECONDS = 400  # builds take about 100 seconds of one core


def extension_name() -> str:
    return f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def use(folder: Path) -> Iterator[str]:
    """Make this process and its forks use what the folder holds; yields lines that say so.

    Without an extension in the checkout or the pack, one is built during the run if there is a
    compiler: the parts that begin after that use it.
    """
    if "TRITON_CACHE_DIR" not in os.environ and folder.exists():
        try:
            yield _use_cache(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield f"pack: not used, {folder} is not whole: {type(error).__name__}: {error}"
    yield from _use_extension(folder)


def _use_cache(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["python"] != _python():
        return f"pack: not used by Python {'.'.join(_python())}: {told(manifest)}"
    place_cache(folder / "triton", _temporary())
    return f"pack: {told(manifest)}"


def _temporary() -> Path:
    """A folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="marco_fast-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _python() -> list[str]:
    return [*platform.python_version_tuple()[:2]]


def told(manifest: dict) -> str:
    """One line about a pack: its contents and their versions."""
    return (
        f"{manifest['kernels']} kernels for {manifest['arch']}, Triton {manifest['triton']}, "
        f"Python {'.'.join(manifest['python'])}; {manifest['extension']}"
    )


def place_cache(packed: Path, folder: Path) -> None:
    """Copy a cache into a folder that Triton uses from now on: its entries hold absolute paths."""
    cache = folder / "triton"
    shutil.copytree(packed, cache)
    for group in cache.glob("*/__grp__*.json"):
        names = json.loads(group.read_text(encoding="utf-8"))["child_paths"]
        paths = {name: str(group.parent / name) for name in names}
        group.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")
    os.environ["TRITON_CACHE_DIR"] = str(cache)


def _use_extension(folder: Path) -> Iterator[str]:
    import marco_fast

    if importlib.util.find_spec("marco_fast._C"):
        return
    packed = folder / extension_name()
    if packed.exists() and _loads(packed):
        marco_fast.__path__.append(str(folder.resolve()))
        yield f"pack: {packed.name}"
        return
    if shutil.which(os.environ.get("CXX", "g++")) and importlib.util.find_spec("pybind11"):
        scratch = _temporary()
        marco_fast.__path__.append(str(scratch))
        process = build(scratch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(process.kill)
        yield "no C++ extension: one is being built"
    else:
        yield "no C++ extension and no compiler: the slower Python code plans"


# Runs in a process of its own; argument 1 is the file of an extension.
LOAD = """
import sys
from importlib import util
spec = util.spec_from_file_location("marco_fast._C", sys.argv[1])
module = util.module_from_spec(spec)
spec.loader.exec_module(module)
module.isa()
"""
# Argument 1 is the folder that gets the complete extension, argument 2 the seconds allowed.
BUILD = """
import os, pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[1])
subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder / "lib",
                "--build-temp", folder / "temp"], check=True, timeout=float(sys.argv[2]))
made = next((folder / "lib").rglob("_C*.so"))
os.replace(made, folder / made.name)
"""


def _loads(extension: Path) -> bool:
    """Whether this Python can load an extension."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(extension)], capture_output=True)
    return done.returncode == 0


def build(folder: Path, **options: Any) -> subprocess.Popen:
    """Start to build the extension into a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(BUILD_SECONDS)], cwd=ROOT, **options
    )


def make(folder: Path, arch: str) -> dict:
    """Fill a folder; returns its manifest and its size in bytes.

    Raises:
        RuntimeError: something does not compile, or all of it is too large to be carried.
    """
    from bench.gpu.compilation import launches_of_run

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    build_extension(folder)
    manifest = make_cache(folder, [*launches_of_run(arch).specializations.values()])
    nbytes = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    if nbytes > MOST_BYTES:
        raise RuntimeError(f"expected a pack of at most {MOST_BYTES / 1e6:.0f} MB, got {nbytes}")
    return manifest | {"bytes": nbytes}


def make_cache(folder: Path, found: list) -> dict:
    """Compile specialisations of one architecture, and the stubs that launch them, into a folder.

    Raises:
        RuntimeError: something does not compile.
    """
    import torch
    import triton

    from bench.gpu.compilation import compile_all

    os.environ["TRITON_CACHE_DIR"] = str((folder / "triton").resolve())
    os.environ["TRITON_STORE_BINARY_ONLY"] = (
        "1"  # the intermediate forms of a binary are not needed
    )
    with without_libcuda():
        _build_utilities()
        row = compile_all(found, started=_no_loading)
    if row["errors"]:
        raise RuntimeError("; ".join(row["errors"]))  # type: ignore[arg-type]
    manifest = {
        "arch": found[0].arch, "kernels": len(found), "triton": triton.__version__,
        "python": _python(), "torch": torch.__version__, "platform": platform.platform(),
        "extension": extension_name(),
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def build_extension(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        process = build(Path(scratch), stderr=subprocess.PIPE, text=True)
        told = process.communicate()[1]
        made = Path(scratch) / extension_name()
        if not made.exists():
            raise RuntimeError(f"expected the extension to be built, got: {told[-2000:]}")
        shutil.copy(made, folder)


@contextlib.contextmanager
def without_libcuda() -> Iterator[None]:
    """Link Triton's stubs to an empty library with the name of the driver's, which this machine
    lacks; the linker must keep the dependency although nothing is used from it."""
    compiler = os.environ.get("CC", "gcc")
    with tempfile.TemporaryDirectory() as scratch:
        wrapper = Path(scratch) / "cc"
        wrapper.write_text(f'#!/bin/sh\nexec {compiler} -Wl,--no-as-needed "$@"\n')
        wrapper.chmod(0o755)
        library = Path(scratch) / "libcuda.so.1"
        subprocess.run(
            [wrapper, "-shared", "-x", "c", "/dev/null", f"-Wl,-soname,{library.name}", "-o",
             library],
            check=True,
        )  # fmt: skip
        with mock.patch.dict(os.environ, TRITON_LIBCUDA_PATH=scratch, CC=str(wrapper)):
            yield


def _no_loading() -> None:
    """Build stubs without loading them: there is no driver to load them with."""
    from triton.runtime import build

    build._load_module_from_path = lambda name, path: mock.MagicMock()


def _build_utilities() -> None:
    """Build the module through which Triton talks to the driver."""
    from triton.backends.nvidia import driver
    from triton.runtime import build

    with mock.patch.object(build, "_load_module_from_path", return_value=mock.MagicMock()):
        driver.CudaUtils.__init__(SimpleNamespace())  # type: ignore[arg-type]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 where something does not compile."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.pack", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu-pack")
    parser.add_argument("--arch", default="sm_90")
    args = parser.parse_args(argv)
    try:
        made = make(args.out, args.arch)
    except RuntimeError as error:
        print(f"bench.gpu.pack: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {made['bytes'] / 1e6:.1f} MB; {told(made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
