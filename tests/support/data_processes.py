"""Runs of generate_data in processes of their own, which a test can kill at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from argparse import ArgumentParser
from pathlib import Path

from marco_fast.data import journal as data_journal
from tests.support.data_runs import ROOT, fake_solve, make

REAL = ["--expansions", "3", "--parallel", "4", "--max-branches", "8", "--min-agreement", "0"]


class Children:
    """Runs in processes of their own, forked from one that has loaded what they need.

    That one runs nothing itself, so that no thread of it can hold a lock at a fork.
    """

    def __init__(self, *, real: bool) -> None:
        code = f"from tests.support.data_processes import serve; serve({real})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def ask(self, *words: object) -> int:
        print(json.dumps([str(each) for each in words]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, source: Path, out: Path, seconds: float, deadly: int = 0) -> int:
        """A run with a search of so many seconds a batch, which dies at that operation on files."""
        return self.ask(source, out, seconds, deadly)

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(30) == 0

    def end(self) -> int:
        """The exit code of the run, once it has ended; until then its number is its own."""
        return self.ask()


def serve(real: bool) -> None:
    """What a Children's process does: a line with arguments is a run, an empty one its end."""
    pid = 0
    if real:
        from transformers import AutoModelForCausalLM, Qwen2ForCausalLM  # noqa: F401

        import marco_fast.forest.solve  # noqa: F401
    for line in sys.stdin:
        words = json.loads(line)
        if not words:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            sys.stdout = sys.stderr  # the other one is for the parent's questions
            os._exit(command(words) if real else fake_run(*words))
        print(pid, flush=True)


def fake_run(source: str, out: str, seconds: str, deadly: str) -> int:
    def slow(*arguments, **options):
        time.sleep(float(seconds))
        return fake_solve(*arguments, **options)

    # In place of the real one, which would load PyTorch.
    sys.modules["marco_fast.forest.solve"] = types.SimpleNamespace(
        solve=slow, interrupts=no_interrupts
    )
    die_at(int(deadly))
    make(Path(source), Path(out))
    return 0


def no_interrupts():
    import contextlib
    import threading

    return contextlib.nullcontext(threading.Event())


def die_at(deadly: int) -> None:
    """SIGKILL in front of the n-th operation on files; a write is cut in half by it."""
    calls = []

    def counted(name, real):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == deadly:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in ("open", "write", "fsync", "ftruncate", "replace", "unlink"):
        setattr(data_journal.os, name, counted(name, getattr(os, name)))


def command(arguments) -> int:
    """marco-fast generate-data, as cli.main runs a command."""
    from marco_fast.commands import generate_data as the_command

    parser = ArgumentParser(prog="marco-fast")
    the_command.add(parser.add_subparsers(dest="command"))
    options = parser.parse_args(["generate-data", *map(str, arguments)])
    try:
        return options.run(options)
    except ValueError as error:
        print(f"marco-fast {options.command}: error: {error}", file=sys.stderr)
        return 2


def wait_for_lines(path: Path, lines: int, seconds: float = 120) -> None:
    """Until the journal has so many lines."""
    end = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.002)
