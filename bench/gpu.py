"""Everything that is shown on a GPU, in one command and under nine minutes.

python -m bench.gpu [--out DIR] [--only PART ...] [--minutes 9] [--dry-run]

Checks first (every kernel against float64 at full size, graphs replayed with every input changed,
a thousand repeats bit for bit), then the times, each beside its floor and its peers. Writes
DIR/gpu.json after every part and prints a short table. A part that fails leaves its error in the
JSON and the others run. Without a GPU, --dry-run rehearses all of it on tiny shapes.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PART_NAMES = (
    "environment",
    "ceilings",
    "check confidence",
    "check sampling",
    "check LM head",
    "check attention",
    "check graphs",
    "check repeats",
    "time confidence",
    "time sampling",
    "time LM head",
    "time attention",
    "time append_kv",
    "search",
)


def parts(machine: Any) -> dict[str, Callable[[], list[dict]]]:
    """Each part by name: a function that gives its rows."""
    from bench import gpu_checks as checks
    from bench import gpu_times as times

    functions: tuple[Callable[[], list[dict]], ...] = (
        machine.describe,
        machine.measure_ceilings,
        lambda: checks.confidence(machine),
        lambda: checks.sampling(machine),
        lambda: checks.lm_head(machine),
        lambda: checks.attention(machine),
        lambda: checks.graphs(machine),
        lambda: checks.repeats(machine),
        lambda: times.confidence(machine),
        lambda: times.sampling(machine),
        lambda: times.lm_head(machine),
        lambda: times.attention(machine),
        lambda: times.append_kv(machine),
        lambda: times.search(machine),
    )
    return dict(zip(PART_NAMES, functions, strict=True))


def run_part(name: str, function: Callable[[], list[dict]]) -> dict:
    """The rows of one part, or what went wrong in it."""
    begin = time.monotonic()
    try:
        result: dict = {"part": name, "rows": function()}
    except Exception as error:  # one part must not end the run
        result = {"part": name, "rows": getattr(error, "rows", [])}
        result["error"] = f"{type(error).__name__}: {error}"
        result["traceback"] = traceback.format_exc()
    result["seconds"] = round(time.monotonic() - begin, 2)
    return result


def print_part(result: dict) -> None:
    """A line a row."""
    print(f"\n== {result['part']} ({result['seconds']} s)")
    for row in result["rows"]:
        print("  " + line(row))
    if "error" in result:
        print(f"  FAILED {result['error']}")
    sys.stdout.flush()


def line(row: dict) -> str:
    """One row as text: a measurement with its floor and peers, or the fields as they are."""
    if "us" not in row:
        return ", ".join(f"{key} {value}" for key, value in row.items())
    text = f"{row['case']:48} {row['us']:9.1f} us"
    if "floor_us" in row:
        text += f"  floor {row['floor_us']:8.1f} us ({row['floor_us'] / row['us']:4.0%})"
    for name, peer in row.get("peers", {}).items():
        told = f"{peer['us'] / row['us']:.2f}x" if "us" in peer else peer["error"][:40]
        text += f"  {name} {told}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 where a part failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of gpu.json")
    parser.add_argument("--only", nargs="+", choices=PART_NAMES, default=PART_NAMES)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    args = parser.parse_args(argv)
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import torch

    from bench.gpu_machine import Machine

    if not args.dry_run and not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, found none (--dry-run rehearses without one)")
    args.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(args.dry_run, time.monotonic() + 60 * args.minutes)
    results: list[dict] = []
    for name, function in parts(machine).items():
        if name not in args.only and name not in PART_NAMES[:2]:
            continue
        if machine.out_of_time:
            results.append({"part": name, "rows": [], "error": "no time left", "seconds": 0.0})
        else:
            results.append(run_part(name, function))
        print_part(results[-1])
        written = args.out / "gpu.json.part"
        written.write_text(json.dumps({"dry_run": args.dry_run, "parts": results}, indent=1))
        written.replace(args.out / "gpu.json")
    failed = [result["part"] for result in results if "error" in result]
    print(f"\n{len(results) - len(failed)} parts ended, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
