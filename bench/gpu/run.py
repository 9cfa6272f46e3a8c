"""The parts of the GPU run in their order, each with a budget, and the command line.

python -m bench.gpu [--out DIR] [--minutes 9.5] [--parts PART ...] [--commit C] [--dry-run]

The most important parts come first: whether every kernel runs and is right, how far it is from
its floor, which tile is best; then a whole decoding step, the peers, and last the long checks.
Every row is written to DIR/gpu.jsonl as soon as it is measured; DIR/table.txt is made again after
every part. The run needs the repository, torch and triton; it uses a C++ extension, a compiler, git
and the peers if they are there. Without a GPU, --dry-run rehearses all of it on tiny shapes.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from bench.gpu import pack
from bench.gpu.table import Results, line, table

__all__ = ["PARTS", "Part", "Run", "main"]

PACK = Path(__file__).parents[2] / ".gpu-pack"


@dataclass(frozen=True)
class Part:
    """Cases that share a budget.

    Attributes:
        name: as --parts takes it.
        seconds: no case begins later; the time that a part does not use is left to the next ones.
        module, function: the generator of its cases, in bench/gpu/; imported in the child.
    """

    name: str
    seconds: float
    module: str
    function: str

    def cases(self, machine: Any) -> Iterator[Any]:
        module = import_module(f"bench.gpu.{self.module}")
        return getattr(module, self.function)(machine)


PARTS = (
    Part("environment", 20, "machine", "environment"),
    Part("ceilings", 15, "machine", "ceilings"),
    Part("compile", 60, "compilation", "cases"),
    Part("smoke", 40, "parts.smoke", "cases"),
    Part("confidence", 20, "parts.times", "confidence"),
    Part("sampling", 20, "parts.times", "sampling"),
    Part("lm-head", 25, "parts.times", "lm_head"),
    Part("attention", 40, "parts.times", "attention"),
    Part("append-kv", 10, "parts.times", "append_kv"),
    Part("sweep-attention", 60, "parts.sweeps", "attention"),
    Part("sweep-lm-head", 50, "parts.sweeps", "lm_head"),
    Part("sweep-confidence", 40, "parts.sweeps", "confidence"),
    Part("products", 20, "parts.step", "products"),
    Part("step", 60, "parts.step", "captured"),
    Part("engine", 60, "parts.step", "engine"),
    Part("peers-attention", 40, "parts.peers", "attention"),
    Part("peers-lm-head", 30, "parts.peers", "lm_head"),
    Part("peers-sampling", 20, "parts.peers", "sampling"),
    Part("peers-confidence", 40, "parts.peers", "confidence"),
    Part("search", 30, "parts.step", "nano_search"),
    Part("check-attention", 60, "parts.checks.attention", "attention"),
    Part("check-lm-head", 60, "parts.checks.lm_head", "lm_head"),
    Part("check-confidence", 60, "parts.checks.confidence", "confidence"),
    Part("check-sampling", 90, "parts.checks.confidence", "sampling"),
    Part("check-graphs", 40, "parts.checks.repeats", "graphs"),
    Part("check-repeats", 90, "parts.checks.repeats", "repeats"),
    Part("counters", 90, "parts.tools", "counters"),
    Part("sanitizer", 240, "parts.tools", "sanitizer"),
)
# Every run has these parts: the others divide by what they find.
FIRST = ("environment", "ceilings")


class Interrupted(Exception):
    """A signal asked the run to end."""


@dataclass
class Run:
    """One run: where it writes, and when it must be over.

    Attributes:
        folder: gets gpu.jsonl, table.txt and gpu.log; the rows of an earlier run become
            gpu.1.jsonl, and so on.
        mode: "gpu" or "dry".
        deadline: time.monotonic() of the end.
        commit: the commit that is run, where git cannot tell.
    """

    folder: Path
    mode: str
    deadline: float
    commit: str | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results()
        self.log = self.folder / "gpu.log"
        self.log.write_bytes(b"")
        path = self.folder / "gpu.jsonl"
        if path.exists():  # an earlier run's, which is kept
            number = next(n for n in count(1) if not path.with_suffix(f".{n}.jsonl").exists())
            path.rename(path.with_suffix(f".{number}.jsonl"))
        self.file = path.open("w", encoding="utf-8")

    def write(self, record: dict) -> None:
        """Write one line of the file, before anything else begins."""
        self.file.write(json.dumps(record, default=str) + "\n")
        self.file.flush()
        self.results.add(record)

    def run(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self.run_part(part)
            self.write_table()

    def run_part(self, part: Part) -> None:
        from bench.gpu.machine import Machine
        from bench.gpu.process import GRACE, run_part

        # The last case of a part may end GRACE after its deadline.
        seconds = min(part.seconds, self.deadline - time.monotonic() - GRACE)
        if seconds <= 0:
            self.write({"part": part.name, "ended": "no time left", "seconds": 0.0})
            return
        machine = Machine(self.mode, ceilings=self.results.ceilings())
        print(f"== {part.name}", flush=True)

        def emit(row: dict) -> None:
            if part.name == "environment" and self.commit:
                row["commit"] = self.commit
            self.write({"part": part.name, **row})
            print("  " + line(row), flush=True)

        end = run_part(part.cases, machine, seconds, self.log, emit)
        self.write({"part": part.name, "ended": end.ended, "seconds": round(end.seconds, 2)}
                   | ({"left": end.left} if end.left else {}))  # fmt: skip
        if end.ended != "ok":
            print(f"  {end.ended}: {len(end.left)} cases not begun", flush=True)

    def write_table(self) -> None:
        path = self.folder / "table.txt"
        path.with_suffix(".part").write_text(table(self.results), encoding="utf-8")
        path.with_suffix(".part").replace(path)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def command_line(all_parts: Sequence[Part]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in all_parts]
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.5, help="when the run is over")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART",
                        help=f"of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--commit", help="what is run, where there is no git to tell")
    parser.add_argument("--pack", type=Path, default=PACK, help="folder that make gpu-pack made")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    return parser


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Set the environment, unpack the pack and look for a GPU, before a child is forked."""
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # PyTorch must find out whether there is a GPU without the driver: a fork of a process that has
    # started the driver cannot use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for told in pack.use(args.pack):
        print(told, flush=True)
    if args.dry_run:
        return
    if why_not := no_gpu():
        parser.error(f"expected a CUDA GPU, {why_not} (--dry-run rehearses without one)")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("expected TRITON_INTERPRET unset: the interpreter runs nothing on a GPU")
    import_module("bench.gpu.launches").import_kernels()  # once for all parts
    # Where nothing else holds the device, the driver would shut it down after each part.
    with contextlib.suppress(OSError):
        os.open("/dev/nvidia0", os.O_RDWR)


def main(argv: Sequence[str] | None = None, *, all_parts: Sequence[Part] = PARTS) -> int:
    """Runs the command line; 1 where a case failed, 2 for bad input, 130 after an interruption."""
    parser = command_line(all_parts)
    args = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    prepare(parser, args)
    chosen = [part for part in all_parts if part.name in args.parts or part.name in FIRST]
    run = Run(args.out, "dry" if args.dry_run else "gpu", deadline, args.commit)
    before = {n: signal.signal(n, interrupt) for n in (signal.SIGTERM, signal.SIGINT)}
    interrupted = None
    try:
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        this = {"command": sys.argv, "mode": run.mode, "minutes": args.minutes, "started": started}
        run.write({"run": this})
        run.run(chosen)
    except Interrupted as error:
        interrupted = str(error)
        run.write({"part": "run", "ended": f"interrupted: {error}", "seconds": 0.0})
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        run.write_table()
        run.file.close()
    print("\n" + table(run.results))
    if interrupted:
        return 130
    return 1 if run.results.failures() else 0


def no_gpu() -> str | None:
    """Why no GPU can be used; asked in a child, since this process must not touch it."""
    import torch

    from bench.gpu.process import in_child

    if torch.version.cuda is None and torch.version.hip is None:
        return f"found PyTorch {torch.__version__} without CUDA"
    return in_child(_look_for_gpu)


def _look_for_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "found none"
