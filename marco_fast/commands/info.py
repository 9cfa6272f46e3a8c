"""marco-fast info: versions, devices, and which backend runs what."""

import argparse
import os
import sys
from typing import Any

from marco_fast import __version__
from marco_fast.commands.console import print_json
from marco_fast.commands.options import OK

__all__ = ["add"]


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("info", help="versions, devices, and which backend runs what")
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the report as tables or as JSON."""
    report = _report()
    if options.json:
        print_json(report, indent=2)
        return OK
    from rich.table import Table
    from rich.text import Text

    from marco_fast.forest.live import SafeConsole

    console = SafeConsole(highlight=False)
    for section in ("versions", "devices", "cpu"):
        table = Table(title=section, title_justify="left", show_header=False)
        for name, value in report[section].items():
            table.add_row(name, Text(str(value)))
        console.print(table)
    table = Table(title="which backend runs what", title_justify="left")
    for title in ("operation", "device", "runs", "the others"):
        table.add_column(title)
    for row in report["operations"]:
        others = "\n".join(f"{name}: {why}" for name, why in row["others"].items())
        table.add_row(row["operation"], row["device"], row["runs"], Text(others))
    console.print(table)
    return OK


def _report() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from marco_fast.ops.backends import OPERATIONS, backend_status, default_backend

    versions = {"marco_fast": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "transformers", "tokenizers", "numpy", "triton"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    names = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = {
        name: torch.cuda.get_device_name(name) if name != "cpu" else f"{os.cpu_count()} cores"
        for name in names
    }
    operations = []
    for op in OPERATIONS:
        for name in names:
            device = torch.device(name)
            runs = default_backend(device, op)
            others = {k: v for k, v in backend_status(device, op).items() if k != runs}
            operations.append({"operation": op, "device": name, "runs": runs, "others": others})
    return {"versions": versions, "devices": devices, "cpu": _cpu(), "operations": operations}


def _cpu() -> dict[str, Any]:
    import torch

    try:
        from marco_fast import _C
    except ImportError as error:
        return {"kernels": f"not built ({error})", "threads": torch.get_num_threads()}
    return {
        "kernels": _C.isa(),
        "can also run": ", ".join(each for each in _C.supported_isas() if each != _C.isa()),
        "threads": torch.get_num_threads(),
    }
