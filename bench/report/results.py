"""The result files: what is kept of what pytest-benchmark wrote, and how JSON is read."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from marco_fast.files import read_json

__all__ = ["AVX2", "FRONT", "PAGE", "RESULTS", "ReportError", "condense", "load"]

RESULTS = Path("bench/results/cpu")
AVX2 = Path("bench/results/cpu-avx2")  # of a machine without AVX-512
FRONT = Path("README.md")  # shows one table of speed and one of accuracy
PAGE = Path("bench/results/README.md")  # shows every table


class ReportError(ValueError):
    """Something that the report needs is missing."""


def condense(raw: dict[str, Any]) -> dict[str, Any]:
    """What is kept of pytest-benchmark's JSON: the machine, each benchmark's median and extra.

    Raises:
        ReportError: `raw` is not such JSON.
    """
    try:
        machine, commit = raw["machine_info"], raw["commit_info"]
        benchmarks = [
            {
                "name": each["name"],
                "median_us": round(each["stats"]["median"] * 1e6, 2),
                "rounds": each["stats"]["rounds"],
                **_rounded(each["extra_info"]),
            }
            for each in raw["benchmarks"]
        ]
        return {
            "command": "pytest bench --benchmark-only",
            "cpu": machine["cpu"].get("brand_raw"),
            "cores": machine["cpu"].get("count"),
            "python": machine["python_version"],
            **{name: version(name).partition("+")[0] for name in ("torch", "transformers")},
            "commit": commit["id"],
            "benchmarks": benchmarks,
        }
    except (KeyError, TypeError) as error:
        raise ReportError(f"expected pytest-benchmark's JSON, got one without {error}") from error


def _rounded(value: Any) -> Any:
    """`value` with every float in it, at any depth, rounded to four decimals."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def load(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ReportError where there is none."""
    try:
        return read_json(path, "a JSON object", dict)
    except (OSError, ValueError) as error:
        raise ReportError(str(error)) from error
