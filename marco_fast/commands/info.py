"""marco-fast info: versions, devices, which backend runs what, and how a model would run."""

import argparse
import os
import sys
from typing import Any

from marco_fast import __version__
from marco_fast.commands.console import print_json
from marco_fast.commands.model_info import as_json, as_lines
from marco_fast.commands.options import OK, add_engine_options, engine_options

__all__ = ["add"]


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "info", help="versions, devices, which backend runs what, and how a model would run"
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--model", default=None, metavar="PATH|FILE.gguf|ID",
        help="say how this model would run; its weights are not read",
    )  # fmt: skip
    add_engine_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the report as tables or as JSON."""
    if options.model is not None:
        return _tell_of_model(options)
    report = _report()
    if options.json:
        print_json(report, indent=2)
        return OK
    from rich.table import Table
    from rich.text import Text

    from marco_fast.forest.live import SafeConsole

    console = SafeConsole(highlight=False)
    for section in ("versions", "devices", "cpu", "bundled models"):
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


def _tell_of_model(options: argparse.Namespace) -> int:
    """Prints how a model would run; one that would be refused is bad input."""
    from rich.table import Table
    from rich.text import Text

    from marco_fast.engine.loading.outlook import outlook
    from marco_fast.engine.quiet import silence_libraries
    from marco_fast.forest.live import SafeConsole

    silence_libraries()
    seen = outlook(options.model, **engine_options(options))
    if options.json:
        print_json(as_json(options.model, seen), indent=2)
        return OK
    table = Table.grid(padding=(0, 2))
    for name, text in as_lines(options.model, seen).items():
        table.add_row(Text(name, style="bold"), Text(text))
    SafeConsole(highlight=False).print(table)
    return OK


def _bundled() -> dict[str, str]:
    from marco_fast.engine.loading.load import BUNDLED
    from marco_fast.engine.loading.outlook import outlook
    from marco_fast.engine.quiet import silence_libraries

    silence_libraries()
    seen = {name: as_lines(name, outlook(name)) for name in BUNDLED}
    return {name: f"{each['architecture']}; {each['runs']}" for name, each in seen.items()}


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
    return {
        "versions": versions,
        "devices": devices,
        "cpu": _cpu(),
        "bundled models": _bundled(),
        "operations": operations,
    }


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
